"""The body of a register call that begins with a signature."""

from pathlib import Path

import httpx
import pytest

from support.control_api_server import RunningControl
from support.signers import key_pair
from vlserve.errors import SignatureMismatch
from vlserve.signing.archives import sign_archive
from vlserve.signing.beside import SignatureFiles, read_beside
from vlserve.signing.bundle import MAX_BUNDLE_BYTES


def test_signature_and_provenance_arrive_whole(
    control_api: RunningControl, archives: list[Path], tmp_path: Path
) -> None:
    archive = tmp_path / archives[0].name
    archive.write_bytes(archives[0].read_bytes())
    sign_archive(archive, key_pair(tmp_path, "release").key)
    files = read_beside(archive)
    control_api.client.register(archive, files=files)
    copy = control_api.settings.model_store / "tagger" / "1" / archive.name
    assert copy.read_bytes() == archive.read_bytes()
    assert read_beside(copy) == files
    assert files is not None
    with pytest.raises(SignatureMismatch):
        control_api.client.register(archives[1], files=files)


@pytest.mark.parametrize(
    ("sizes", "status", "code"),
    [
        ({"signature_bytes": MAX_BUNDLE_BYTES + 1}, 422, "signature_unreadable"),
        ({"provenance_bytes": MAX_BUNDLE_BYTES + 1}, 422, "signature_unreadable"),
        ({"signature_bytes": 10**30}, 422, "signature_unreadable"),
        ({"signature_bytes": 150_000, "provenance_bytes": 150_000}, 400, "upload_cut_off"),
        ({"signature_bytes": -1}, 422, "request_invalid"),
        ({"signature_bytes": 7}, 422, "archive_unreadable"),
        ({"provenance_bytes": 7}, 422, "archive_unreadable"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    control_api: RunningControl,
    archives: list[Path],
    sizes: dict[str, int],
    status: int,
    code: str,
) -> None:
    answer = httpx.post(
        f"{control_api.url}/versions",
        params=sizes,
        content=archives[0].read_bytes()[:200_000],
        headers=control_api.headers | {"Content-Type": "application/octet-stream"},
        trust_env=False,
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert not list(control_api.settings.model_store.glob("tagger/*/*"))


@pytest.mark.parametrize("files", [SignatureFiles(b"{}"), SignatureFiles(b"", b"{}")])
def test_what_is_no_signature_is_refused(
    control_api: RunningControl, archives: list[Path], files: SignatureFiles
) -> None:
    answer = httpx.post(
        f"{control_api.url}/versions",
        params={
            "signature_bytes": len(files.signature),
            "provenance_bytes": len(files.provenance),
        },
        content=files.signature + files.provenance + archives[0].read_bytes(),
        headers=control_api.headers | {"Content-Type": "application/octet-stream"},
        trust_env=False,
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "signature_unreadable")
