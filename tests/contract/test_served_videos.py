"""A video in the place of an image, sent to a real worker of today's archives and of older ones."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support.drawn_videos import card, write_video
from support.recorded import RECORDINGS, STORE, unpack
from support.torchserve_worker import WorkerAnswer, WorkerRequest, running_worker
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.archive import unpack_archive
from vlserve_worker import video_parts
from vlserve_worker.bodies import BodyRefused
from vlserve_worker.video import UNSUPPORTED, FrameChoice, FrameReader, Place, VideoError
from vlserve_worker.video_parts import VideoParts

TEXT = b"cat cover"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    return write_video(folder / "clip.mp4", [card("red"), card("blue")])


def said(answer: WorkerAnswer) -> Mapping[str, Any]:
    body: Mapping[str, Any] = json.loads(answer.body)
    return body


@pytest.mark.parametrize("archive", ["today's", *RECORDINGS])
def test_a_model_answers_a_video_as_its_first_frame(
    archive: str, clip: Path, tmp_path: Path
) -> None:
    archive_file = (
        pack_echo(tmp_path, "m", 1)
        if archive == "today's"
        else next(iter(sorted((unpack(archive, tmp_path / "project") / STORE).rglob("*.mar"))))
    )
    unpack_archive(archive_file, tmp_path / "unpacked")
    with FrameReader() as reader:
        jpeg = reader.read(Place(clip), FrameChoice()).jpeg
    data = clip.read_bytes()
    fields = {"video": base64.b64encode(data).decode(), "text": TEXT.decode()}
    with running_worker(tmp_path / "unpacked", tmp_path) as worker:
        assert worker.load(tmp_path / "unpacked")[0] == 200
        image, form, as_json, fragment, both = worker.predict(
            [
                WorkerRequest({"image": jpeg, "text": TEXT}),
                WorkerRequest({"video": data, "text": TEXT}),
                WorkerRequest({"body": json.dumps(fields).encode()}),
                WorkerRequest({"video": data[:300], "text": TEXT}),
                WorkerRequest({"video": data, "image": jpeg, "text": TEXT}),
            ]
        )
    assert image.status == form.status == as_json.status == 200, said(form)
    assert said(image)["tags"] == said(form)["tags"] == said(as_json)["tags"]
    assert (fragment.status, said(fragment)["error"]["code"]) == (400, "video_unreadable")
    assert said(both)["error"]["message"] == "send a video or an image, not both"


def request(**fields: bytes) -> dict[str, Any]:
    parameters = [{"name": name, "value": bytearray(value)} for name, value in fields.items()]
    return {"headers": [], "parameters": parameters}


def test_a_body_that_holds_no_video_stays_as_it_is() -> None:
    for body in (b'{"text": "\\"video\\""}', b'["video"]', b'{"video": 1', b'{"a": {"video": 1}}'):
        raw_request = request(body=body)
        VideoParts(None).to_images(raw_request, 1)
        assert raw_request == request(body=body)


def test_a_video_that_is_not_base64_is_refused_as_one() -> None:
    for value in (b"3", b"null", b'"a b"', b"[]"):
        with pytest.raises(VideoError, match="video is not base64"):
            VideoParts(None).to_images(request(body=b'{"video": %s}' % value), 1)
    with pytest.raises(BodyRefused, match="not both"):
        VideoParts(None).to_images(request(body=b'{"video": "", "image": "x"}'), 1)


def test_the_time_of_a_batch_is_shared(clip: Path) -> None:
    raw_request = request(video=clip.read_bytes())
    with pytest.raises(VideoError, match=r"longer than 1e-05 s"):
        VideoParts(0.0002).to_images(raw_request, 10)


def test_a_server_without_the_extra_says_what_to_install(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_parts.FrameReader, "_started", lambda self: refuse())

    def refuse() -> None:
        raise VideoError(UNSUPPORTED, "pip install")

    with pytest.raises(VideoError, match="pip install"):
        VideoParts(30).to_images(request(video=clip.read_bytes()), 1)
