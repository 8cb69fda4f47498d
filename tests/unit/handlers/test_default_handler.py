"""A default handler of TorchServe, by its name: refused without its package, started with it."""

import io
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

from support import legacy_archives as legacy
from support.started_handlers import Start, ask
from vlserve.adopt.adoption import Wishes, described
from vlserve.adopt.legacy_archive import open_legacy
from vlserve.errors import NotAdopted

WORDS = ("a", "red", "door", "a red", "red door")
LABELS = {"0": "indoors", "1": "outdoors"}
CAPTUM = """
class LayerIntegratedGradients:
    def __init__(self, model, layer):
        pass


class TokenReferenceBase:
    pass
"""


class Network(torch.nn.Module):
    """Scores a text by the mean of its words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.EmbeddingBag(len(WORDS), 4)
        self.linear = torch.nn.Linear(4, len(LABELS))

    def forward(self, words: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Return scores of shape [1, labels]."""
        return self.linear(self.embedding(words, offsets))  # type: ignore[no-any-return]


@pytest.fixture
def captum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub of the package, for this test alone."""
    stub = tmp_path / "packages" / "captum"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub / "attr.py").write_text(CAPTUM, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    for handler in ("text_handler", "text_classifier"):  # undone with the rest
        name = f"ts.torch_handler.{handler}"
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)


def _files(network: Network) -> dict[str, bytes]:
    vocabulary, weights = io.BytesIO(), io.BytesIO()
    torch.save({word: number for number, word in enumerate(WORDS)}, vocabulary)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network), weights)  # type: ignore[no-untyped-call]
    return {
        "source_vocab.pt": vocabulary.getvalue(),
        "network.pt": weights.getvalue(),
        "index_to_name.json": json.dumps(LABELS).encode(),
    }


def _archive(folder: Path, network: Network) -> Path:
    return legacy.write_legacy(
        folder / "Text.mar", "text_classifier", "", _files(network), serializedFile="network.pt"
    )


def test_its_package_is_named_before_it_is_loaded(tmp_path: Path) -> None:
    archive = open_legacy(_archive(tmp_path, Network()), tmp_path / "unpacked")

    with pytest.raises(NotAdopted, match="needs captum, which is not installed"):
        described(archive, Wishes())


@pytest.mark.usefixtures("captum")
@pytest.mark.filterwarnings("ignore")  # torch's, of what TorchServe's handler calls
def test_with_its_package_it_answers(start: Start, tmp_path: Path) -> None:
    network = Network().eval()
    adoption, notes = described(
        open_legacy(_archive(tmp_path, network), tmp_path / "unpacked"), Wishes()
    )

    pipeline = start(
        "",
        handler=adoption.handler,
        files=_files(network),
        model={"serializedFile": "network.pt"},
    )

    ((status, content),) = ask(pipeline, b"A red <b>door</b>!")
    scores = torch.softmax(network(torch.arange(len(WORDS)), torch.tensor([0])), dim=1)[0]
    assert notes == ()
    assert status == 200, content
    assert json.loads(content) == pytest.approx(
        dict(zip(LABELS.values(), scores.tolist(), strict=True))
    )
