"""A checkpoint on a disk that is full: the file is named, and nothing of it stays."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from vlserve.training import state_file
from vlserve.training.state import save_weights


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "Error while serializing: I/O error: No space left on device (os error 28)",
            r"\[Errno 28\] No space left on device: '.*model.safetensors'",
        ),
        ("Error while serializing: something else", "model.safetensors cannot be written: Error"),
    ],
)
def test_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, expected: str
) -> None:
    def full(_: object, file: Path, **__: object) -> None:
        file.touch()
        raise SafetensorError(message)

    monkeypatch.setattr(state_file, "save_file", full)
    with pytest.raises(OSError, match=expected):
        save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []
