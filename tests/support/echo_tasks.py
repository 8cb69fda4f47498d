"""Every kind of model that handlers/ answers for, around graphs without weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlserve.exporter.echo import VOCABULARY
from vlserve.exporter.wordpiece import SPECIAL, wordpiece
from vlserve.runtime.backend import EchoBackend
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.pipeline import Pipeline
from vlserve.runtime.task import load_task

HANDLERS = Path(__file__).parents[2] / "handlers"
FAILS = "坏"
"""A text with this fails in the graph."""
WORDS = (*SPECIAL, "a", "cat", "##s", "dog")
Tensors = dict[str, tuple[Any, ...]]

IMAGE: Tensors = {"image": ("batch", 3, 8, 12)}
PAIR: Tensors = {"image": ("batch", 2, 3, 8, 12)}
TEXT: Tensors = {"text_ids": ("batch", "text"), "text_mask": ("batch", "text")}
VISUAL: Tensors = {"visual": ("batch", "regions", 4), "visual_mask": ("batch", "regions")}
BOXED = VISUAL | {"boxes": ("batch", "regions", 5)}
PAIRED: Tensors = {
    "visual": ("batch", 2, "regions", 4),
    "visual_mask": ("batch", 2, "regions"),
    "boxes": ("batch", 2, "regions", 5),
}
GRID: Tensors = {"visual": ("batch", 6, 4)}
FEATURES = {"features": (IMAGE, GRID)}
MEMORY: Tensors = {"memory_key": ("batch", 3)}
PAST: Tensors = {"past_key": ("batch", "beams", "past", 2)}
STEP = (
    {"token_ids": ("batch", "beams", "tokens")} | PAST | MEMORY,
    {"logits": ("batch", "beams", len(WORDS)), "new_key": ("batch", "beams", "tokens", 2)},
)
SCORE = (
    {"answer_ids": ("batch", "answers", "tokens")} | MEMORY,
    {"log_prob": ("batch", "answers")},
)
WRITING = {"prompt_ids": [2], "end_id": 3, "beams": 2, "max_length": 6, "tokenizer": "words.json"}
SPOKEN = WRITING | {"words": "said.json", "merge_repeats": True, "finished": "stay"}


def classifier(inputs: Tensors, classes: int) -> dict[str, tuple[Tensors, Tensors]]:
    return {"model": (inputs, {"logits": ("batch", classes)})}


def described(task: str, graphs: Mapping[str, tuple[Tensors, Tensors]], **more: Any) -> Any:
    return {"task": task, "graphs": graphs, **more}


ENTAILED = ("no", "maybe", "yes")
TRUTH = ("false", "true")
REGIONS = {"regions": {"dim": 4, "max_regions": 9}}
BOXES = {"regions": {"dim": 4, "max_regions": 9, "boxes": True}}
VECTOR: Tensors = {"image_embedding": ("batch", 5)}
WORDS_VECTOR: Tensors = {"text_embedding": ("batch", 5)}
DUAL: dict[str, tuple[Tensors, Tensors]] = {
    "image": (IMAGE, {"image_states": ("batch", 7, 4), **VECTOR}),
    "text": (TEXT, {"text_states": ("batch", "text", 4), **WORDS_VECTOR}),
}
FUSION = (
    {
        "image_states": ("batch", 7, 4),
        "text_states": ("batch", "text", 4),
        "text_mask": TEXT["text_mask"],
    },
    {"match_logits": ("batch", 2)},
)
LATE = ({"text_states": ("batch", "text", 4), **BOXED}, {"match_logits": ("batch", 1)})
MAPS = {"match_logits": ("batch", 2), "word_maps": ("batch", "text", 2, 3)}
BY_COSINE = {"similarity": ("batch", 1), "map": ("batch", 2, 3)}

KINDS: dict[str, Any] = {
    "tag": described("tag", classifier(IMAGE | TEXT, 3), labels=ENTAILED),
    "tag-by-either": described(
        "tag", classifier(VISUAL | TEXT, 3) | FEATURES, labels=ENTAILED, image=True, **REGIONS
    ),
    "tag-of-images": described("tag", classifier(IMAGE, 3), labels=ENTAILED),
    "tag-of-texts": described("tag", classifier(TEXT, 3), labels=ENTAILED),
    "match": described(
        "match", DUAL | {"fusion": FUSION}, options={"retrieval_score": "match_logit + cosine"}
    ),
    "match-of-regions": described(
        "match",
        {"text": (TEXT, {"text_states": ("batch", "text", 4)}), "fusion": LATE},
        options={"retrieval_score": "match_logit", "global_region": True},
        **BOXES,
    ),
    "embed": described("embed", DUAL),
    "embed-images": described("embed", {"image": DUAL["image"]}),
    "caption": described("caption", {"encoder": (IMAGE, MEMORY), "step": STEP}, options=WRITING),
    "caption-of-a-grid": described(
        "caption",
        {"encoder": (GRID, MEMORY), "step": STEP} | FEATURES,
        options=SPOKEN,
        image=True,
        **REGIONS,
    ),
    "answer": described("answer", classifier(VISUAL | TEXT, 3), labels=ENTAILED, **REGIONS),
    "answer-ranked": described(
        "answer",
        {"encoder": (IMAGE | TEXT, MEMORY), "step": STEP, "score": SCORE},
        labels=ENTAILED,
        options={"answer_ids": "answers.json", "candidates": 2},
    ),
    "answer-written": described(
        "answer", {"encoder": (IMAGE | TEXT, MEMORY), "step": STEP}, options=WRITING
    ),
    "entail": described("entail", classifier(IMAGE | TEXT, 3), labels=ENTAILED),
    "reason": described("reason", classifier(PAIR | TEXT, 2), labels=TRUTH),
    "reason-by-regions": described("reason", classifier(PAIRED | TEXT, 2), labels=TRUTH, **BOXES),
    "ground": described(
        "ground",
        {"model": (BOXED | TEXT, {"region_scores": ("batch", "regions")})},
        options={"global_region": True},
        **BOXES,
    ),
    "ground-by-words": described("ground", {"model": (IMAGE | TEXT, MAPS)}),
    "ground-by-cosine": described("ground", {"model": (IMAGE | TEXT, BY_COSINE)}),
}
"""``image`` and ``text`` of the manifest are there where a graph takes them, unless it says so."""


def manifest_of(kind: str, **changes: Any) -> Manifest:
    fields = dict(KINDS[kind])
    input_names = {name for inputs, _ in fields["graphs"].values() for name in inputs}
    image = fields.pop("image", "image" in input_names)
    draft: dict[str, Any] = {
        "model": "m",
        "version": 1,
        "family": "echo",
        **fields,
        "graphs": {name: _graph(*tensors) for name, tensors in fields["graphs"].items()},
        "image": {"height": 8, "width": 12} if image else None,
        "text": _text() if "text_ids" in input_names else None,
        **changes,
    }
    files = ["echo.json", "characters.json", f"handlers/{fields['task']}.py"]
    files += ["torchserve_handler.py", "MAR-INF/MANIFEST.json"]
    return Manifest.model_validate({**draft, "files": dict.fromkeys(files, "0" * 64)})


def pipeline_of(kind: str, root: Path, **changes: Any) -> Pipeline:
    manifest = manifest_of(kind, **changes)
    (root / "echo.json").write_text(json.dumps({"fail_on_id": VOCABULARY[FAILS]}), encoding="utf-8")
    (root / "characters.json").write_text(json.dumps(VOCABULARY), encoding="utf-8")
    (root / "answers.json").write_text(
        json.dumps([[2, 5, 3, 0], [2, 6, 7, 3], [2, 8, 3, 0]]), encoding="utf-8"
    )
    (root / "said.json").write_text(json.dumps(WORDS), encoding="utf-8")
    wordpiece(WORDS).save(str(root / "words.json"))
    task = load_task(HANDLERS / f"{manifest.task}.py")
    graphs = manifest.graphs.items()
    backends = {name: EchoBackend(graph, root / "echo.json", 1) for name, graph in graphs}
    return Pipeline(manifest, task(manifest, root, backends))


def _text() -> dict[str, Any]:
    tokenizer = {"tokenizer": "characters", "file": "characters.json", "max_length": 15}
    return tokenizer | {"unknown_id": 1, "pad_to_max": False}


def _graph(inputs: Tensors, outputs: Tensors) -> dict[str, Any]:
    tensors = {"inputs": _tensors(inputs), "outputs": _tensors(outputs)}
    return {"file": "echo.json", "format": "echo", **tensors}


def _tensors(tensors: Tensors) -> list[dict[str, Any]]:
    integers = ("_ids", "_mask", "_length")
    return [
        {"name": name, "dtype": "int64" if name.endswith(integers) else "float32", "dims": dims}
        for name, dims in tensors.items()
    ]
