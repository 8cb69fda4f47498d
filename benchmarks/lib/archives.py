"""What the speed runs serve by default: a full-size ResNet18-GRU tagger with random weights, which
takes as long as a trained one. Made once for each state of the code, under .vlserve/bench."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import CHECKOUT
from benchmarks.lib.photos import jpeg
from vlserve.cli.output import print_line
from vlserve.exporter.pack import archive_name, draft_of, pack_members
from vlserve.runtime.archive import unpack_archive

FROZEN = ("src/vlserve/runtime/*.py", "handlers/*.py", "export/resnet_gru.py")
"""What goes into the archives, and what makes them."""
MODEL = "tagger"
RECIPE = "resnet_gru"
LABELS = [f"label-{number:02d}" for number in range(20)]
CONFIG = {
    "labels": LABELS,
    "vocabulary": {chr(code): code - 0x1E for code in range(0x20, 0x7F)},
    "max_length": 150,
    "unknown_id": 1,
    "pooling": "final_states",
    "image": {"height": 224, "width": 224},
    "hidden": 256,
    "embedding_size": 128,
}


def default_folder() -> Path:
    """Named after the code that its archives hold."""
    digest = hashlib.sha256(json.dumps(CONFIG).encode())
    for file in sorted(file for pattern in FROZEN for file in CHECKOUT.glob(pattern)):
        digest.update(file.read_bytes())
    return CHECKOUT / ".vlserve" / "bench" / f"archives-{digest.hexdigest()[:12]}"


def default_checkpoint() -> Path:
    """model.safetensors, with its config.json beside it."""
    path = default_folder() / "checkpoint" / "model.safetensors"
    if not path.is_file():
        import torch
        from safetensors.torch import save_file

        from vlserve.exporter.recipe import load_recipe

        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        network = load_recipe(RECIPE, CHECKOUT / "export").build(CONFIG)
        path.with_name("config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        save_file(network.state_dict(), path)
    return path


def default_archives() -> Sequence[Path]:
    """fp32, then int8."""
    folder = default_folder()
    archives = [folder / archive_name(MODEL, version) for version in (1, 2)]
    options: dict[str, Any] = {"name": MODEL, "progress": print_line}
    if all(archive.is_file() for archive in archives):
        return archives

    from vlserve.exporter.export import export_archive
    from vlserve.quantize.export import export_int8

    if not archives[0].is_file():
        export_archive(RECIPE, default_checkpoint(), folder, version=1, **options)
    if not archives[1].is_file():
        items = _calibration(folder / "calibration")
        export_int8(RECIPE, default_checkpoint(), folder, items, version=2, **options)
    return archives


def renamed(archive: Path, model: str, folder: Path) -> Path:
    """The same version of another model."""
    root = folder / f"{model}-unpacked"
    manifest = unpack_archive(archive, root)
    members = {name: root / name for name in manifest.files}
    return pack_members(folder, draft_of(manifest) | {"model": model}, members)


def _calibration(folder: Path) -> Path:
    """Photos as `vlserve evaluate` reads them. Their labels are drawn like the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for seed in range(40):
        (folder / f"{seed}.jpg").write_bytes(jpeg(seed, (480, 270)))
        label = LABELS[seed % len(LABELS)]
        item = {"id": str(seed), "img": f"{seed}.jpg", "text": f"title {seed}", "label": label}
        lines.append(json.dumps(item))
    path = folder / "items.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
