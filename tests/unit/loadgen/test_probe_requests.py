"""Requests made of an archive's probes."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlserve.errors import DataError
from vlserve.exporter.echo import pack_echo
from vlserve.exporter.pack import draft_of, pack_members
from vlserve.exporter.probes import drawn_image
from vlserve.loadgen.probe_requests import vary_probes
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.manifest import TORCHSERVE_MANIFEST


def with_probe_fields(folder: Path, *fields: dict[str, object]) -> Path:
    """An archive whose probes have these fields."""
    manifest = unpack_archive(pack_echo(folder, "tagger", 1), folder / "unpacked")
    names = set(manifest.files) - {TORCHSERVE_MANIFEST}
    probes = [{"fields": probe_fields, "answer": {}} for probe_fields in fields]
    draft = draft_of(manifest) | {"probes": probes}
    return pack_members(folder / "out", draft, {n: folder / "unpacked" / n for n in names})


def test_bodies_differ_from_the_probes_and_from_each_other(tmp_path: Path) -> None:
    archive = pack_echo(tmp_path, "tagger", 1)
    probes = [probe.fields for probe in unpack_archive(archive, tmp_path / "u").probes]
    bodies = [json.loads(post.body) for post in vary_probes(archive, 60)]

    assert all(body.keys() == probes[0].keys() for body in bodies)
    texts = {body["text"] for body in bodies}
    assert len(texts) > 50
    assert not texts & {probe["text"] for probe in probes}
    pictures = {body["image"] for body in bodies}
    assert len(pictures) > 50
    assert not pictures & {probe["image"] for probe in probes}
    sizes = {Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures}
    assert sizes == {(128, 96), (90, 160), (64, 64)}


def test_features_keep_their_shape_and_what_is_no_text_stays(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float16).reshape(3, 4) + 1
    file = io.BytesIO()
    np.save(file, array)
    fields = {
        "features": base64.b64encode(file.getvalue()).decode(),
        "boxes": [[0.0, 0.0, 1.0, 1.0]],
        "top_k": 2,
    }
    for post in vary_probes(with_probe_fields(tmp_path, fields), 5):
        body = json.loads(post.body)
        variant = np.load(io.BytesIO(base64.b64decode(body["features"])))
        assert (variant.shape, variant.dtype) == (array.shape, array.dtype)
        assert not np.array_equal(variant, array)
        assert np.allclose(variant / array, (variant / array).flat[0], rtol=0.01)
        assert {name: body[name] for name in ("boxes", "top_k")} == {
            "boxes": fields["boxes"],
            "top_k": 2,
        }


def test_a_model_of_pictures_alone(tmp_path: Path) -> None:
    archive = with_probe_fields(tmp_path, {"image": drawn_image(0)})
    assert len({post.body for post in vary_probes(archive, 10)}) == 10


def test_an_archive_without_probes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no probes"):
        vary_probes(with_probe_fields(tmp_path), 1)
