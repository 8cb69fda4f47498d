"""A tiny network with seeded random weights for every recipe and task, and their archives."""

import json
import warnings
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from support.kept_exports import KeptExports, code_of, folder_of, key_of
from vlserve.exporter.convert import Converter, Format
from vlserve.exporter.export import ExportReport, export_archive
from vlserve.exporter.recipe import load_recipe, recipe_files
from vlserve.families.grid import complete_grid
from vlserve.models.resnet import ResNet, ResNetConfig
from vlserve.runtime.archive import file_sha256, verify_archive
from vlserve.runtime.manifest import Parity
from vlserve.settings import Settings

PROJECT = Path(__file__).parents[2]
EXPORT = PROJECT / "export"
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ball", "cat", "dog", "##s")
ANSWERS = ("cat", "a red ball", "dogs")
GRID_FILE = "grid.safetensors"
GRID = {"checkpoint": GRID_FILE, "image": {"height": 24, "width": 32}}
GRID_NETWORK = ResNetConfig(layers=(1, 1), width=4)
"""3 x 4 cells of 8 features."""
PARITY = "parity.json"
EXPORTERS = 2
"""Exports at a time, in processes of their own: tracing a gradient is nothing for two threads."""
Config = dict[str, Any]


@dataclass(frozen=True)
class TinyModel:
    """``config``: config.json beside the checkpoint. ``built``: what the recipe builds the network
    from, config.json completed. ``grid``: a ResNet lies beside the checkpoint, by which the model
    takes images too."""

    recipe: str
    task: str
    name: str
    config: Config
    built: Config
    grid: bool = False

    def write(self, folder: Path) -> Path:
        """The checkpoint and its config.json."""
        config, grid = dict(self.config), {}
        if self.grid:
            save_file(seeded(ResNet(GRID_NETWORK), seed=7).state_dict(), folder / GRID_FILE)
            config["grid"], grid = GRID, {"grid": complete_grid(GRID, folder)}
        recipe = load_recipe(self.recipe, EXPORT)
        network = seeded(recipe.build(self.built | grid), seed=1)
        state = network.state_dict()
        own = {name: x for name, x in state.items() if not (grid and name.startswith("grid."))}
        save_file({name: x.contiguous() for name, x in own.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder / "model.safetensors"


def seeded(network: nn.Module, seed: int) -> nn.Module:
    """Random weights, large enough that every part shows in the answers."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=random)
            elif tensor.is_floating_point():
                norm = name.endswith("weight") and tensor.dim() == 1
                tensor.normal_(
                    1.0 if norm else 0.0, 0.3 if tensor.dim() > 1 else 0.1, generator=random
                )
    return network.eval()


def bert(layers: int, first_cross_layer: int, vocabulary: int, **more: Any) -> Config:
    return {
        "hidden": 16,
        "layers": layers,
        "heads": 2,
        "intermediate": 24,
        "layer_norm_eps": 1e-12,
        "vocabulary": vocabulary,
        "positions": 24,
        "first_cross_layer": first_cross_layer,
        "memory_hidden": 16,
        **more,
    }


def vision_text(name: str, task: str, sizes: Config, **more: Any) -> TinyModel:
    """Of blip or albef: a ViT, and BERTs that look at what it sees. The checkpoint is of square
    images, the model of wider ones."""
    vit = {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "layer_norm_eps": 1e-6}
    square = {"image": {"height": 16, "width": 16}, "vision": {**vit, "patch": 8}}
    heads = {"vision_heads": 2, "text_heads": 2}
    config = {"task": task, "vocabulary": WORDS, "max_length": 12, **heads, **more}
    wide = config | {"image": {"height": 16, "width": 24}}
    return TinyModel(name.split("-", maxsplit=1)[0], task, name, wide, config | square | sizes)


def blip_models() -> Iterable[TinyModel]:
    sizes, deep = (bert(layers, 0, len(WORDS) + 2, token_types=0) for layers in (1, 2))
    yield vision_text("blip-match", "match", {"encoder": deep, "embedding": 6})
    yield vision_text("blip-embed", "embed", {"encoder": sizes, "embedding": 6})
    parts, search = {"encoder": sizes, "decoder": sizes}, {"beams": 3, "max_length": 8}
    yield vision_text("blip-answer", "answer", parts | {"decoder": deep}, answers=ANSWERS)
    options = {"writing": {**search, "min_length": 1}}
    yield vision_text("blip-answer-written", "answer", parts, **options)
    sampling = {"sampling": {"temperature_limits": [0.1, 9.0]}}
    options = {"writing": {**search, "min_length": 4, **sampling}, "prompt": "a cat "}
    yield vision_text("blip-caption", "caption", {"decoder": sizes}, **options)


def albef_models() -> Iterable[TinyModel]:
    sizes = bert(2, 1, len(WORDS), token_types=2)
    dual = {"encoder": sizes, "embedding": 6}
    for task in ("match", "embed"):
        yield vision_text(f"albef-{task}", task, dual)
    decoder = bert(1, 0, len(WORDS), token_types=2)
    parts = {"encoder": sizes, "decoder": decoder}
    yield vision_text("albef-answer", "answer", parts, answers=ANSWERS)
    deep = {"encoder": sizes | {"layers": 3}, "classes": 2}
    yield vision_text("albef-reason", "reason", deep)
    yield vision_text("albef-entail", "entail", {"encoder": sizes, "classes": 3})
    yield vision_text("albef-ground", "ground", dual, grad_cam_layer=1)
    by_cosine = {"grad_cam": "itc", "grad_cam_layer": 0}
    yield vision_text("albef-ground-by-cosine", "ground", dual, **by_cosine)


def single_stream(recipe: str, task: str, grid: bool, layers: int = 1, **more: Any) -> TinyModel:
    """Of the VisualBERT families."""
    heads: dict[str, Config] = {
        "answer": {"answers": ANSWERS},
        "tag": {"labels": ("a", "b", "c", "d"), "multi_label": True},
    }
    config = {"task": task, "vocabulary": WORDS, "max_length": 12, "text_heads": 2, **more}
    config |= heads[task]
    classes = 3 if task == "answer" else 4
    encoder = bert(layers, layers, len(WORDS), token_types=2)
    sizes = {"encoder": encoder, "visual_dim": 8, "classes": classes}
    name = f"{recipe}-{task}".replace("_", "-")
    return TinyModel(recipe, task, name, config, config | sizes, grid)


def vilbert_models() -> Iterable[TinyModel]:
    heads = {
        "vil_prediction": len(ANSWERS),
        "vil_logit": 1,
        "vision_logit": 1,
        "vil_binary_prediction": 2,
        "vil_tri_prediction": 3,
    }
    for task in ("answer", "match", "ground", "reason", "entail"):
        config = {"task": task, "vocabulary": WORDS, "max_length": 12, "max_regions": 9}
        config |= {"task_token": 3, "answers": ANSWERS if task == "answer" else ()}
        sizes = {"positions": 24, "token_types": 2, "task_tokens": 5, "region_dim": 6}
        fields, encoder = two_streams(layers=2 if task == "match" else 1)
        sizes |= {"region_targets": 7, "heads": heads, "encoder": encoder}
        yield TinyModel("vilbert", task, f"vilbert-{task}", config | fields, config | sizes)


def two_streams(layers: int) -> tuple[Config, Config]:
    """Return ViLBERT's own fields, and the sizes of its encoder: of ``layers`` layers a stream and
    as many connections."""
    stream = {"layers": layers, "heads": 2}
    connections = {
        "text_connections": tuple(range(1, layers + 1)),
        "visual_connections": (0, 2)[:layers],
    }
    encoder = {
        "text": {"hidden": 16, "intermediate": 24, **stream},
        "visual": {"hidden": 12, "intermediate": 20, **stream},
        "joint_hidden": 8,
        "joint_heads": 2,
        "gated": True,
        **connections,
    }
    fields = {
        "num_attention_heads": 2,
        "v_num_attention_heads": 2,
        "bi_num_attention_heads": 2,
        "t_biattention_id": connections["text_connections"],
        "v_biattention_id": connections["visual_connections"],
    }
    return fields, encoder


def captioner(
    recipe: str,
    grid: bool,
    features: int,
    sizes: Config,
    layers: tuple[int, int] = (3, 2),
    **more: Any,
) -> TinyModel:
    """Of s2 or m2. ``layers``: of encoder, of which m2 reads three, and decoder."""
    words = ("<unk>", "<pad>", "<bos>", "<eos>", "a", "red", "ball", "cat", "dog", "and")
    layer = {"hidden": 16, "heads": 2, "key_size": 8, "value_size": 8, "intermediate": 24}
    config = {"task": "caption", "words": words, "heads": 2, **more}
    config |= {"writing": {"beams": 3, "max_length": 8}}
    parts: Config = {
        part: {"layers": count, **layer}
        for part, count in zip(("encoder", "decoder"), layers, strict=True)
    }
    parts |= {"positions": 48, "features": features, **sizes}
    return TinyModel(recipe, "caption", f"{recipe}-caption", config, config | parts, grid)


def resnet_gru_model() -> TinyModel:
    config = {
        "labels": ("cat", "dog", "car"),
        "vocabulary": {"a": 2, "r": 3, "e": 4, "猫": 5},
        "max_length": 15,
        "unknown_id": 1,
        "image": {"height": 32, "width": 40},
        "pooling": "final_states",
    }
    sizes = {"hidden": 8, "embedding_size": 6, "resnet": {"width": 4, "layers": (1, 1, 1, 1)}}
    return TinyModel("resnet_gru", "tag", "resnet-gru-tag", config, config | sizes)


def modern_model(task: str = "tag", head: str = "fused") -> TinyModel:
    stages = (
        {"blocks": 1, "kernel": 3, "stride": 1, "expansion": 1, "channels": 4},
        {"blocks": 2, "kernel": 5, "stride": 2, "expansion": 2, "channels": 6},
    )
    encoder = {"stem": 4, "stages": stages, "features": 8}
    config = {
        "task": task,
        "head": head,
        "labels": ("cat", "dog", "car"),
        "multi_label": True,
        "vocabulary": WORDS,
        "max_length": 12,
        "image": {"height": 24, "width": 32},
        "image_encoder": {"stages": stages},
        "text": {"heads": 2},
        "heads": 2,
    }
    text = bert(1, 1, len(WORDS), token_types=2)
    sizes = {"image_encoder": encoder, "text": text, "hidden": 8}
    name = f"modern-{task}" if head == "fused" else f"modern-{task}-{head}"
    return TinyModel("modern", task, name, config, config | sizes)


def dual_encoder_model() -> TinyModel:
    modern = modern_model()
    own = {"task", "head", "labels", "multi_label", "heads"}
    config = {name: value for name, value in modern.config.items() if name not in own}
    parts = {name: modern.built[name] for name in ("image_encoder", "text")}
    return TinyModel(
        "dual_encoder", "embed", "dual-encoder-embed", config, config | parts | {"embedding": 6}
    )


def resnet_model() -> TinyModel:
    config = {"image": {"height": 24, "width": 32}}
    whole_config = config | {"resnet": GRID_NETWORK.model_dump()}
    return TinyModel("resnet", "embed", "resnet-embed", config, whole_config)


def tiny_models() -> dict[str, TinyModel]:
    """By name."""
    keys = {"variant": "chunk", "chunk": 3, "text": True}
    models = [
        resnet_gru_model(),
        resnet_model(),
        modern_model("tag"),
        modern_model("tag", "linear"),
        modern_model("answer"),
        dual_encoder_model(),
        *blip_models(),
        *albef_models(),
        *vilbert_models(),
        single_stream("visualbert", "answer", grid=False, layers=2),
        single_stream("visualbert", "tag", grid=True),
        single_stream("visualbert_coattention", "answer", grid=True, layers=2, keys=keys),
        single_stream("visualbert_coattention", "tag", grid=False),
        captioner("s2", True, 8, {"clusters": 3}, layers=(2, 1), cells=12),
        captioner("m2", False, 6, {"slots": 3}, max_regions=9),
    ]
    return {model.name: model for model in models}


def recipes_and_tasks() -> list[tuple[str, str]]:
    """Of every file in export/."""
    return [
        (file.stem, task)
        for file in recipe_files(EXPORT)
        for task in load_recipe(file.stem, EXPORT).spec.tasks
    ]


VERSIONS: dict[Format, int] = {"onnx": 1, "torchscript": 2}
"""Of a model's archives: one stack may serve both."""


@dataclass(frozen=True)
class Export:
    """One archive to make. ``checkpoint``: written by its model, config.json beside it."""

    model: TinyModel
    checkpoint: Path
    format: Format

    def key(self) -> str:
        """Return what the archive is kept by."""
        recipe = {"recipe": (EXPORT / f"{self.model.recipe}.py").read_bytes()}
        version = str(VERSIONS[self.format])
        options = {
            **{"name": self.model.name.encode(), "format": self.format.encode()},
            "version": version.encode(),
        }
        return key_of(code_of(), folder_of(self.checkpoint.parent), recipe, options)

    def make(self, out: Path) -> None:
        """Write the archive, and beside it how its graphs were proved."""
        warnings.simplefilter("ignore")  # remarks of torch's exporters
        report = export_archive(
            self.model.recipe,
            self.checkpoint,
            out,
            format=self.format,
            name=self.model.name,
            version=VERSIONS[self.format],
            settings=Settings(project_dir=PROJECT),
            converter=_converter(),
        )
        parity = {name: proof.model_dump() for name, proof in report.parity.items()}
        (out / PARITY).write_text(json.dumps(parity), encoding="utf-8")


class Archives:
    """Archives of tiny models, each exported in the background, once for the same inputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = tiny_models()
        self._pool = ProcessPoolExecutor(EXPORTERS, get_context("spawn"))
        self._exports: dict[tuple[str, Format], Future[Path]] = {}

    def begin(self, pairs: Iterable[tuple[str, Format]]) -> None:
        """Start the exports of (name, format) that have not begun."""
        for name, format in pairs:
            if (name, format) not in self._exports:
                model, checkpoint = self.models[name], self.checkpoint(name)
                if not checkpoint.exists():
                    checkpoint.parent.mkdir()
                    model.write(checkpoint.parent)
                self._exports[name, format] = self._start(Export(model, checkpoint, format))

    def _start(self, export: Export) -> Future[Path]:
        entry = KeptExports().get(export.key())
        if entry is None:
            return self._pool.submit(kept_or_made, export)
        ready: Future[Path] = Future()
        ready.set_result(entry)
        return ready

    def report(self, name: str, format: Format) -> ExportReport:
        """Return the report of one export, once it is done."""
        self.begin([(name, format)])
        return report_of(self._exports[name, format].result())

    def checkpoint(self, name: str) -> Path:
        """Return the checkpoint of an export that has begun."""
        return self.folder / name / "model.safetensors"

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def report_of(folder: Path) -> ExportReport:
    """Return the report of an export that is kept in ``folder``."""
    (archive,) = folder.glob("*.mar")
    proofs = json.loads((folder / PARITY).read_text(encoding="utf-8"))
    parity = {name: Parity.model_validate(proof) for name, proof in proofs.items()}
    return ExportReport(archive, file_sha256(archive), verify_archive(archive), parity, ())


def kept_or_made(export: Export) -> Path:
    """Return the folder of a kept export, in a process of the pool, which keeps one converter."""
    return KeptExports().get_or_make(export.key(), export.make)


@cache
def _converter() -> Converter:
    """Ends with the process that it belongs to, whose pipe it reads."""
    return Converter()
