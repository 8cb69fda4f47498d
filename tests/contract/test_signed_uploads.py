"""The body of a register call that begins with a signature."""

from pathlib import Path

import httpx
import pytest

from support.control_api_server import RunningControl, running_control
from support.signers import key_pair
from vlserve.control.api.console.access import TOKEN_HEADER
from vlserve.errors import SignatureMismatch
from vlserve.settings_sections import TrustSettings
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


@pytest.fixture
def signed(archives: list[Path], tmp_path: Path) -> Path:
    """A folder: tagger-1.mar with its signature and provenance, tagger-2.mar without."""
    folder = tmp_path / "signed"
    folder.mkdir()
    for archive in archives[:2]:
        (folder / archive.name).write_bytes(archive.read_bytes())
    sign_archive(folder / "tagger-1.mar", key_pair(tmp_path, "release").key)
    return folder


@pytest.mark.parametrize("scheme", ["store", "file"])
def test_the_signature_beside_an_address_counts(tmp_path: Path, signed: Path, scheme: str) -> None:
    trust = TrustSettings(mode="enforce", keys=(tmp_path / "release.pem",))
    prefix = f"{signed.as_uri()}/"
    with running_control(tmp_path, trust=trust, allowed_urls=(prefix,)) as control:
        store = control.settings.model_store
        if scheme == "store":
            prefix = ""
            for file in signed.iterdir():
                file.rename(store / file.name)
            signed = store
        url = f"{control.url}/torchserve/models"
        with httpx.Client(headers=control.headers, trust_env=False) as script:
            answer = script.post(url, params={"url": f"{prefix}tagger-1.mar"})
            assert answer.status_code == 200, answer.text
            refusal = script.post(url, params={"url": f"{prefix}tagger-2.mar"})
            assert refusal.status_code == 400
            assert f"{prefix}tagger-2.mar.sigstore.json, where nothing is" in refusal.text
        [version] = control.client.model("tagger").versions
        assert version.signer is not None and version.signer.startswith("release (")
        kept = store / "tagger" / "1" / "tagger-1.mar"
        assert read_beside(kept) == read_beside(signed / "tagger-1.mar") is not None


def test_no_signature_is_read_where_trust_is_off(tmp_path: Path, signed: Path) -> None:
    (signed / "tagger-1.mar.sigstore.json").write_text("no signature", encoding="utf-8")
    prefix = f"{signed.as_uri()}/"
    with running_control(tmp_path, allowed_urls=(prefix,)) as control:
        answer = httpx.post(
            f"{control.url}/torchserve/models",
            params={"url": f"{prefix}tagger-1.mar"},
            headers=control.headers,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text


def test_the_console_takes_a_signature(
    control_api: RunningControl, browser: httpx.Client, signed: Path
) -> None:
    archive = signed / "tagger-1.mar"
    files = read_beside(archive)
    assert files is not None
    sizes = {"signature_bytes": len(files.signature), "provenance_bytes": len(files.provenance)}
    headers = {
        TOKEN_HEADER: browser.headers["X-Test-Token"],
        "Content-Type": "application/octet-stream",
    }
    answer = browser.post(
        "/console/versions",
        params={"name": archive.name, **sizes},
        content=files.signature + files.provenance + archive.read_bytes(),
        headers=headers,
    )
    assert answer.json() == {"page": "/console/models/tagger"}
    kept = control_api.settings.model_store / "tagger" / "1" / archive.name
    assert (kept.read_bytes(), read_beside(kept)) == (archive.read_bytes(), files)
