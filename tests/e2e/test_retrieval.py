"""An index on the real stack: it comes, answers, gives way to the next one and comes back."""

import base64
import json
from pathlib import Path

import pytest

from support.running_stack import PROJECT
from support.tiny_models import Archives
from vlserve.exporter.probes import drawn_image
from vlserve.retrieval.build import IndexReport, build_index
from vlserve.runtime.task import difference
from vlserve.testing import RunningStack


def indexed(archive: Path, folder: Path, model: str, version: int, items: int) -> IndexReport:
    lines = []
    for seed in range(items):
        (folder / f"{seed}.img").write_bytes(base64.b64decode(drawn_image(seed)))
        lines.append(json.dumps({"id": f"item-{seed}", "img": f"{seed}.img"}))
    data = folder / f"items-{version}.jsonl"
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    handlers = PROJECT / "handlers"
    return build_index(
        archive, data, folder / "out", name=model, version=version, handlers=handlers
    )


@pytest.mark.long
def test_an_index_is_a_version_like_any_other(
    stack: RunningStack, new_model: str, archives: Archives, tmp_path: Path
) -> None:
    archive = archives.report("albef-match", "onnx").path
    first, second = (
        indexed(archive, tmp_path, new_model, version, items) for version, items in ((1, 3), (2, 7))
    )
    stack.control.register(first.path)
    stack.control.release(new_model, 1)
    path = f"/predictions/{new_model}"
    by_text = stack.http.post(path, files={"text": (None, b"a red ball")})
    assert by_text.status_code == 200, by_text.text
    answer = by_text.json()
    assert answer["ranked_by"] == "match_logit"
    assert {hit["id"] for hit in answer["results"]} == {"item-0", "item-1", "item-2"}

    stack.control.register(second.path)
    stack.control.release(new_model, 2)
    image = {"image": ("cover.jpg", base64.b64decode(drawn_image(5)))}
    form = {**image, "top_k": (None, b"1")}
    by_image = stack.http.post(path, files=form).json()
    assert (by_image["version"], by_image["ranked_by"]) == (2, "cosine")
    assert by_image["results"][0]["id"] == "item-5"
    among = {"text": "a red ball", "candidates": ["item-6", "item-2"], "top_k": 2}
    hits = stack.http.post(path, json=among).json()["results"]
    assert {hit["id"] for hit in hits} == {"item-2", "item-6"}
    refusal = stack.http.post(path, json={"text": "a cat", "candidates": ["nothing"]})
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (422, "field_invalid")

    assert stack.control.rollback(new_model).version == 1
    again = stack.http.post(path, json={"text": "a red ball"}).json()
    assert again["version"] == 1
    assert difference(answer["results"], again["results"]) is None
