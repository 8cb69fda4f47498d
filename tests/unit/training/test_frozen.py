"""Training on what a frozen part of the network makes of the items, kept on disk."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_fit import figures_of, multi_label
from torch import Tensor, nn

from support.tiny_models import WORDS, modern_model, seeded
from vlserve.errors import SettingsError, TrainingError
from vlserve.exporter.convert import Converter
from vlserve.exporter.export import export_archive
from vlserve.exporter.recipe import Recipe, load_recipe
from vlserve.runtime.archive import file_sha256, verify_archive
from vlserve.training import encoded_features
from vlserve.training.dataset import read_dataset
from vlserve.training.demo_data import DemoData
from vlserve.training.evaluate import evaluate_archive, evaluate_checkpoint
from vlserve.training.evaluators import evaluate
from vlserve.training.fit import TrainReport, fit
from vlserve.training.options import parse_options
from vlserve.training.plan import DataFacts, TrainingPlan, digest_of, parts_of
from vlserve.training.run import Progress
from vlserve.training.samples import Samples

pytestmark = pytest.mark.training

EXPORT = Path(__file__).parents[3] / "export"
OPTIONS: Mapping[str, Any] = {
    "image_height": 24,
    "image_width": 32,
    "max_length": 12,
    "hidden": 8,
    "heads": 2,
    "batch_size": 8,
    "epochs": 3,
    "learning_rate": 0.01,
}
OPEN_GRAPHS = encoded_features._open_graphs


@dataclasses.dataclass(frozen=True)
class TinyPlan:
    """The modern tagger's plan with tiny encoders, whose weights are drawn."""

    real: TrainingPlan
    weights: Mapping[str, Tensor]
    frozen: str = "encoder"
    trained: str = "head"

    @property
    def options(self) -> Any:
        return self.real.options

    def new_config(self, options: Any, facts: DataFacts) -> dict[str, Any]:
        config = self.real.new_config(options, facts)
        parts = modern_model().built
        return (
            config
            | {name: parts[name] for name in ("text", "image_encoder")}
            | {"vocabulary": WORDS}
        )

    def pretrained(self, options: Any) -> Mapping[str, Tensor]:
        return self.weights


def tiny_recipe(seed: int) -> Any:
    recipe: Any = load_recipe("modern", EXPORT)
    encoder = seeded(recipe.build(modern_model().built).get_submodule("encoder"), seed)
    recipe.training = TinyPlan(recipe.training, encoder.state_dict())
    return recipe


@dataclasses.dataclass(frozen=True)
class EagerSession:
    """Answers as the graph of a frozen part, which takes seconds to make."""

    frozen: nn.Module

    def run(self, names: list[str], batch: Any) -> list[Any]:
        outputs = encoded_features._run_eager(self.frozen, batch)
        return [outputs[name] for name in names]


@pytest.fixture(autouse=True, scope="module")
def eager_graphs() -> Iterator[None]:
    """Of all tests but those of ``exported_graphs``: each graph is held against the eager encoder
    anyhow."""

    def open_eagerly(frozen: nn.Module, batch: Any, names: tuple[str, ...]) -> Any:
        return [encoded_features.Graph(EagerSession(frozen), tuple(batch), names)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded_features, "_open_graphs", open_eagerly)
        yield


@pytest.fixture(scope="module")
def open_once() -> Callable[..., Any]:
    """Exports the graph of an encoder once for the same weights and images."""
    graphs = dict[Any, Any]()

    def graph_of(frozen: nn.Module, batch: Any, names: tuple[str, ...]) -> Any:
        images = {name: x.shape[2:] for name, x in batch.items()}
        key = (digest_of(frozen.state_dict()), str(images), names)
        if key not in graphs:
            graphs[key] = OPEN_GRAPHS(frozen, batch, names)
        return graphs[key]

    return graph_of


@pytest.fixture
def exported_graphs(monkeypatch: pytest.MonkeyPatch, open_once: Callable[..., Any]) -> None:
    monkeypatch.setattr(encoded_features, "_open_graphs", open_once)


@pytest.fixture(scope="module")
def frozen_recipe() -> Recipe:
    recipe: Recipe = tiny_recipe(seed=1)
    return recipe


@pytest.fixture(scope="module")
def training(
    frozen_recipe: Recipe, demo: DemoData, tmp_path_factory: pytest.TempPathFactory
) -> TrainReport:
    torch.set_num_threads(1)  # figures are the same with as many threads
    out = tmp_path_factory.mktemp("frozen") / "out"
    return fit(frozen_recipe, demo.train, demo.val, out, options=OPTIONS, seed=5)


@pytest.fixture(scope="module")
def graph_training(
    frozen_recipe: Recipe,
    demo: DemoData,
    tmp_path_factory: pytest.TempPathFactory,
    open_once: Callable[..., Any],
) -> TrainReport:
    """As ``training``, by the encoder's graph."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("by-graph") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded_features, "_open_graphs", open_once)
        return fit(frozen_recipe, demo.train, demo.val, out, options=OPTIONS, seed=5)


def test_the_frozen_part_keeps_its_weights_and_the_other_learns(
    training: TrainReport, frozen_recipe: Any
) -> None:
    weights = load_file(training.out / "model.safetensors")
    encoder_weights = frozen_recipe.training.pretrained(None)
    assert all(weights[f"encoder.{name}"].equal(x) for name, x in encoder_weights.items())
    torch.manual_seed(5)
    config = json.loads((training.out / "config.json").read_text(encoding="utf-8"))
    start = frozen_recipe.build(config).state_dict()
    learnt = [name for name in weights if name.startswith("head.") and name in start]
    assert not any(weights[n].equal(start[n]) for n in learnt if n.endswith("classifier.weight"))
    assert config["training"]["pretrained_sha256"] == digest_of(encoder_weights)
    state = load_file(training.out / "last.safetensors")
    assert not any("encoder" in name for name in state), "what is frozen need not be resumed"


def test_the_archive_answers_as_the_training_measured(
    graph_training: TrainReport, demo: DemoData, converter: Converter
) -> None:
    checkpoint = graph_training.out / "model.safetensors"
    archive = export_archive(
        "modern", checkpoint, graph_training.out, format="torchscript", converter=converter
    ).path
    archive_figures = evaluate_archive(archive, demo.val).metrics.to_json()
    checkpoint_figures = evaluate_checkpoint("modern", checkpoint, demo.val).metrics.to_json()
    for name in ("items", "accuracy", "macro_f1", "map"):
        assert (
            archive_figures[name]
            == checkpoint_figures[name]
            == graph_training.metrics.to_json()[name]
        )
    record = verify_archive(archive).training
    assert (
        record
        == json.loads((graph_training.out / "config.json").read_text(encoding="utf-8"))["training"]
    )
    assert record is not None and record["train_sha256"] == file_sha256(demo.train)
    assert record["seed"] == 5 and record["options"]["epochs"] == OPTIONS["epochs"]
    assert set(record["code"]) == {"vlserve", "sources_sha256", "torch"}
    figures = [epoch["macro_f1"] for epoch in record["epochs"]]
    assert len(figures) == graph_training.epochs and max(figures) == graph_training.metrics.macro_f1


@pytest.mark.usefixtures("exported_graphs")
def test_answers_are_measured_as_evaluate_does(
    frozen_recipe: Recipe, demo: DemoData, converter: Converter, tmp_path: Path
) -> None:
    """Of several answers that count, the best one alone is judged; questions stay whose answers
    train does not show."""
    train, val = (multi_label(demo, name, tmp_path) for name in ("train", "val"))
    unanswerable, items = with_answers_of_val_alone(val)
    out = tmp_path / "out"
    report = fit(frozen_recipe, train, val, out, options={**OPTIONS, "task": "answer"})
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    accuracies = [epoch["accuracy"] for epoch in metrics["epochs"]]
    assert metrics["best_by"] == "accuracy"
    assert accuracies[metrics["best_epoch"] - 1] == max(accuracies) == metrics["accuracy"]
    assert {"macro_f1", "micro_f1", "map"} <= metrics.keys()
    archive = export_archive(
        "modern", out / "model.safetensors", out, format="torchscript", converter=converter
    ).path
    figures = evaluate(archive, val).figures
    assert (figures["items"], figures["accuracy"]) == (metrics["items"], report.metrics.accuracy)
    assert metrics["items"] == items and not (out / "bad_lines.json").exists()
    assert 0 < report.metrics.accuracy <= 1 - unanswerable / items
    low, high = metrics["intervals_95"]["accuracy"]
    assert low <= report.metrics.accuracy <= high


def with_answers_of_val_alone(val: Path) -> tuple[int, int]:
    """Give every third question an answer that train does not show, and every third one such an
    answer beside its own; an answer alone is no list. Return how many cannot be right, of how
    many."""
    items = [json.loads(line) for line in val.read_text(encoding="utf-8").splitlines()]
    for place, item in enumerate(items):
        own = item["label"] if isinstance(item["label"], list) else [item["label"]]
        item["label"] = ("of val alone", [*own, "of val alone"], own)[place % 3]
    val.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return len(items[::3]), len(items)


@pytest.mark.parametrize("several", [True, False])
def test_a_question_stays_whose_answers_train_does_not_show(
    several: bool, frozen_recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    """Whether those of train are lists or not."""
    train, val = (multi_label(demo, name, tmp_path) for name in ("train", "val"))
    if not several:
        lines = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
        lines = [line | {"label": line["label"][0]} for line in lines]
        train.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    _, items = with_answers_of_val_alone(val)
    options = parse_options(frozen_recipe.training.options, {**OPTIONS, "task": "answer"})  # type: ignore[attr-defined]
    data = read_dataset(frozen_recipe, train, val, options, training={}, strict=True)
    assert data.multi_label == several and "of val alone" not in data.config["labels"]
    assert (len(data.val), len(data.val_labels)) == (items, items)
    known = data.val.targets.any(axis=1)
    assert known.tolist() == [place % 3 != 0 for place in range(items)]
    assert data.val_labels[0] == ("of val alone",) and "of val alone" in data.val_labels[1]


def test_a_question_without_any_answer_is_left_out(
    frozen_recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    train, val = (multi_label(demo, name, tmp_path) for name in ("train", "val"))
    items = [json.loads(line) for line in val.read_text(encoding="utf-8").splitlines()]
    items[0]["label"] = []
    val.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    options = parse_options(frozen_recipe.training.options, {**OPTIONS, "task": "answer"})  # type: ignore[attr-defined]
    data = read_dataset(frozen_recipe, train, val, options, training={}, strict=False)
    assert [(bad.line, bad.reason) for bad in data.bad_lines] == [(1, "no answer")]
    assert len(data.val) == len(items) - 1


def stages_of(recipe: Recipe, demo: DemoData, out: Path, **more: Any) -> list[str]:
    steps: list[Progress] = []
    options = {**OPTIONS, **more.pop("options", {})}
    fit(
        recipe, demo.train, demo.val, out,
        options=options, seed=5, progress=steps.append, **more,
    )  # fmt: skip
    return [step.stage for step in steps if step.stage != "step"]


@pytest.mark.long
def test_features_are_made_once_and_never_stale(
    training: TrainReport, frozen_recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    cache = tmp_path / "features"
    first = stages_of(frozen_recipe, demo, tmp_path / "1", features=cache)
    assert "encode" in first and figures_of(tmp_path / "1") == figures_of(training.out)
    files = sorted(cache.iterdir())
    second = stages_of(frozen_recipe, demo, tmp_path / "2", features=cache)
    assert "encode" not in second and figures_of(tmp_path / "2") == figures_of(training.out)
    assert sorted(cache.iterdir()) == files and len(files) == 2
    # other images, other weights: other features
    larger = stages_of(
        frozen_recipe, demo, tmp_path / "3", features=cache, options={"image_height": 32}
    )
    assert "encode" in larger
    assert "encode" in stages_of(tiny_recipe(seed=2), demo, tmp_path / "4", features=cache)
    assert figures_of(tmp_path / "4") != figures_of(training.out)


@pytest.mark.export
@pytest.mark.usefixtures("exported_graphs")
def test_what_items_share_is_encoded_once(
    frozen_recipe: Recipe, demo: DemoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three questions about each of the photos, and the same question about each third."""
    items = [json.loads(line) for line in demo.train.read_text(encoding="utf-8").splitlines()]
    lines = [
        json.dumps(
            item
            | {
                "id": f"{item['id']}-{number}",
                "img": str(demo.train.parent / item["img"]),
                "text": "the same" if number == 2 else f"{item['text']} {number}",
            }
        )
        for item in items
        for number in range(3)
    ]
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {**OPTIONS, "max_length": 24}
    options = frozen_recipe.training.options(**config)  # type: ignore[attr-defined]
    data = read_dataset(frozen_recipe, train, demo.val, options, training={}, strict=True)
    assert isinstance(data.train, Samples)
    counts = Counter[str]()
    run = encoded_features.Graph.run

    def counted(graph: encoded_features.Graph, batch: Any) -> Any:
        for name in graph.inputs:
            counts[name] += len(batch[name])
        return run(graph, batch)

    network = parts_of(frozen_recipe.build(data.config), frozen_recipe.training)  # type: ignore[attr-defined]
    assert network.frozen is not None
    monkeypatch.setattr(encoded_features.Graph, "run", counted)
    encoder = encoded_features.Encoder(network.frozen)
    encoded = encoded_features.encode(encoder, data.train, tmp_path / "features")
    images = {image.tobytes() for image in data.train.images}
    texts = {ids.tobytes() for ids in data.train.text_ids}
    first = min(encoded_features.ENCODE_BATCH, len(lines))  # held against the module itself
    assert counts["image"] == len(images) + first <= len(items) + first
    assert counts["text_ids"] == len(texts) + first < len(lines)
    rows = np.arange(0, len(lines), 5)
    plain = network.frozen(
        **{name: x for name, x in data.train.inputs(rows).items() if name != "text_length"}
    )
    for name, x in encoded.inputs(rows).items():
        if name in plain:
            seen = plain[name].detach().numpy()
            np.testing.assert_allclose(x.numpy()[:, : seen.shape[1]], seen, atol=1e-4)


def test_a_broken_encoding_leaves_nothing_behind(
    frozen_recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            frozen_recipe, demo.train, demo.val, tmp_path / "out",
            options=OPTIONS, features=tmp_path / "features", progress=stop,
        )  # fmt: skip
    assert list((tmp_path / "features").iterdir()) == []


def test_a_resumed_run_equals_one_that_never_stopped(
    training: TrainReport, frozen_recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    def stop_after_one(progress: Progress) -> None:
        if progress.stage == "train":
            raise KeyboardInterrupt

    def run(recipe: Recipe, resume: bool, progress: Callable[[Progress], None] | None) -> None:
        fit(
            recipe, demo.train, demo.val, tmp_path,
            options=OPTIONS, seed=5, resume=resume, progress=progress,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run(frozen_recipe, False, stop_after_one)
    with pytest.raises(TrainingError, match="another pretrained_sha256"):
        run(tiny_recipe(seed=2), True, None)
    run(frozen_recipe, True, None)
    assert figures_of(tmp_path) == figures_of(training.out)
    expected, actual = (
        load_file(folder / "model.safetensors") for folder in (training.out, tmp_path)
    )
    assert all(expected[name].equal(actual[name]) for name in expected)


def test_frozen_images_are_not_augmented(
    frozen_recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="sees each image once"):
        fit(frozen_recipe, demo.train, demo.val, tmp_path, options={"augment": True})


def test_a_frozen_part_learns_nothing() -> None:
    network = nn.ModuleDict({"encoder": nn.BatchNorm1d(2), "head": nn.Linear(2, 2)})
    parts = parts_of(network, tiny_recipe(seed=1).training)
    assert parts.frozen is not None and not parts.frozen.training
    assert not any(weight.requires_grad for weight in parts.frozen.parameters())
    assert all(weight.requires_grad for weight in parts.trained.parameters())


def test_class_weights_count_where_items_have_one_label(
    frozen_recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    items = [json.loads(line) for line in demo.train.read_text(encoding="utf-8").splitlines()]
    common = [item for item in items if item["label"] != items[0]["label"]]
    lines = [
        json.dumps(item | {"img": str(demo.train.parent / item["img"])}) + "\n"
        for item in (items[0], *common)
    ]
    uneven = tmp_path / "uneven.jsonl"
    uneven.write_text("".join(lines), encoding="utf-8")

    def losses(train: Path, val: Path, power: float) -> list[float]:
        out = tmp_path / f"{train.stem}-{power}"
        options = {**OPTIONS, "class_weight_power": power}
        fit(frozen_recipe, train, val, out, options=options, features=tmp_path / "features")
        return [epoch["train_loss"] for epoch in figures_of(out)]

    assert losses(uneven, demo.val, 0.0) != losses(uneven, demo.val, 1.0)
    several = [multi_label(demo, name, tmp_path) for name in ("train", "val")]
    assert losses(several[0], several[1], 0.0) == losses(several[0], several[1], 1.0)


def test_a_linear_head_is_solved_whatever_the_seed(
    frozen_recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    options = {**OPTIONS, "head": "linear"}
    cache = tmp_path / "features"
    reports = [
        fit(
            frozen_recipe, demo.train, demo.val, tmp_path / str(seed),
            options=options, seed=seed, features=cache,
        )
        for seed in (1, 2)
    ]  # fmt: skip
    first, second = (load_file(report.out / "model.safetensors") for report in reports)
    assert all(first[name].equal(second[name]) for name in first)
    assert reports[0].epochs == 1 and bool(first["head.pieces.weight"].any())
    heavier = {**options, "penalty": 50}
    fit(frozen_recipe, demo.train, demo.val, tmp_path / "3", options=heavier, features=cache)
    classifier = load_file(tmp_path / "3" / "model.safetensors")["head.classifier.weight"]
    assert classifier.norm() < first["head.classifier.weight"].norm()
    with pytest.raises(TrainingError, match="nothing to resume"):
        fit(frozen_recipe, demo.train, demo.val, tmp_path / "1", options=options, resume=True)


def test_a_family_without_a_plan_is_refused(demo: DemoData, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="family resnet cannot be trained here"):
        fit(load_recipe("resnet", EXPORT), demo.train, demo.val, tmp_path)
