"""A dual encoder with fusion around graphs without weights, and corpora for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlserve.exporter.echo import VOCABULARY
from vlserve.exporter.pack import HANDLERS_DIR, pack_archive

GRAPH, WORDS = "graphs/echo.echo.json", "assets/characters.json"
STATES = {"image": ["batch", 7, 4], "text": ["batch", "text", 4]}
TEXTS = ("a cat", "two dogs on a sofa", "可爱的猫咪", "", "red ball", "a 2nd cat")


def tensor(name: str, *dims: Any) -> dict[str, Any]:
    is_whole = name.endswith(("_ids", "_mask"))
    return {"name": name, "dtype": "int64" if is_whole else "float32", "dims": ["batch", *dims]}


IMAGE = [tensor("image", 3, 8, 12)]
TEXT = [tensor("text_ids", "text"), tensor("text_mask", "text")]
IMAGE_OUT = [tensor("image_states", 7, 4), tensor("image_embedding", 5)]
TEXT_OUT = [tensor("text_states", "text", 4), tensor("text_embedding", 5)]
FUSION = [IMAGE_OUT[0], TEXT_OUT[0], TEXT[1]]


def pack_echo_dual(folder: Path, *, task: str = "match", shift: int = 0) -> Path:
    """``dual-1.mar``; ``shift`` makes an archive that answers otherwise."""
    graphs = {"image": (IMAGE, IMAGE_OUT), "text": (TEXT, TEXT_OUT)}
    if task == "match":
        graphs["fusion"] = (FUSION, [tensor("match_logits", 2)])
    text = {"tokenizer": "characters", "file": WORDS, "max_length": 15, "pad_to_max": False}
    draft = {
        "model": "dual",
        "version": 1,
        "task": task,
        "family": "echo",
        "image": {"height": 8, "width": 12},
        "text": text | {"unknown_id": 1},
        "options": {"retrieval_score": "match_logit + cosine"} if task == "match" else {},
        "graphs": {
            name: {"file": GRAPH, "format": "echo", "inputs": inputs, "outputs": outputs}
            for name, (inputs, outputs) in graphs.items()
        },
    }
    members = {
        GRAPH: json.dumps({"answer_shift": shift}).encode(),
        WORDS: json.dumps(VOCABULARY, ensure_ascii=False).encode(),
    }
    return pack_archive(folder, draft, members, HANDLERS_DIR)


def write_images(folder: Path, count: int) -> list[dict[str, Any]]:
    """Lines of an image corpus, whose files lie beside it."""
    lines = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append({"id": f"i{number}", "img": f"{number}.png"})
    return lines


def write_lines(file: Path, lines: list[Any]) -> Path:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    file.write_text(text, encoding="utf-8")
    return file
