"""Addresses of archives: what is let in, and what is read of it."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ValidationError

from vlserve.control.lifecycle import archive_urls
from vlserve.control.lifecycle.archive_urls import open_url, signature_at
from vlserve.errors import ArchiveNotFound, ArchiveTooSlow, SignatureUnreadable, UrlNotAllowed
from vlserve.runtime.errors import ArchiveTooLarge
from vlserve.settings_sections import ControlSettings
from vlserve.signing.beside import SignatureFiles

BODY = b"an archive"


class Server(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []
    encodings: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.encodings.append(self.headers["Accept-Encoding"])
        status = {
            "/team/moved.mar": 302,
            "/team/none.mar": 404,
            "/team/none.mar.sigstore.json": 404,
            "/team/moved.mar.sigstore.json": 302,
            "/team/secret.mar.sigstore.json": 403,
            "/team/broken.mar.sigstore.json": 503,
            "/team/alone.mar.provenance.sigstore.json": 404,
        }.get(self.path, 200)
        self.send_response(status)
        self.send_header("Location", "/secret/x.mar")
        if self.path != "/team/unsized.mar":
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if self.path == "/team/dripping.mar":
            for byte in BODY:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        else:
            self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked.clear()
    Server.encodings.clear()
    with HTTPServer(("127.0.0.1", 0), Server) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()
        thread.join()


def _read(url: str, store: Path, *prefixes: str, most: int = 1000) -> tuple[str, int, bytes]:
    with open_url(url, store, prefixes, most) as source:
        return source.name, source.size, b"".join(source.chunks)


def test_an_allowed_server_is_asked(server: str, tmp_path: Path) -> None:
    prefix = f"{server}/team/"
    assert _read(f"{prefix}tagger-2.mar", tmp_path, prefix) == ("tagger-2.mar", 10, BODY)
    assert _read(f"{prefix}unsized.mar", tmp_path, prefix) == ("unsized.mar", 0, BODY)
    with pytest.raises(ArchiveTooLarge, match=r"control\.max_archive_bytes"):
        _read(f"{prefix}unsized.mar", tmp_path, prefix, most=9)
    assert {*Server.encodings} == {"identity"}


@pytest.mark.parametrize("name", ["moved.mar", "none.mar"])
def test_what_a_server_does_not_give_is_not_found(server: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveNotFound):
        _read(f"{server}/team/{name}", tmp_path, f"{server}/team/")
    assert Server.asked == [f"/team/{name}"], "a redirect was followed"


def test_a_server_that_drips_is_given_up(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_urls, "FETCH_TOTAL_S", 0.1)
    with pytest.raises(ArchiveTooSlow, match=r"was not given within 0\.1 s"):
        _read(f"{server}/team/dripping.mar", tmp_path, f"{server}/team/")


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArchiveNotFound, match="cannot be fetched"):
        _read("http://127.0.0.1:9/tagger.mar", tmp_path, "http://127.0.0.1:9/")


def test_no_other_server_is_asked(server: str, tmp_path: Path) -> None:
    port = server.rpartition(":")[2]
    for url in (
        f"{server}/secret/x.mar",
        f"{server}/team",
        f"{server}/team/../secret/x.mar",
        f"{server}/team/%2e%2e/secret/x.mar",
        f"{server}/team/..\\secret/x.mar",
        f"{server}/team/%252e%252e/secret/x.mar",
        f"{server}/team/..;/secret/x.mar",
        f"{server}/team/.%0a./secret/x.mar",
        f"{server}/team/x%00.mar",
        f"{server}/team/\x01x.mar",
        f"{server}/te\tam/x.mar",
        f" {server}/team/x.mar",
        f"http://[127.0.0.1]:{port}/team/x.mar",
        f"{server}/team/x.mar?query",
        f"{server}/team/x.mar#part",
        f"http://user@127.0.0.1:{port}/team/x.mar",
        f"http://127.0.0.1:{port}@evil.test/team/x.mar",
        f"https://127.0.0.1:{port}/team/x.mar",
        f"http://localhost:{port}/team/x.mar",
        "http://127.0.0.1/team/x.mar",
        "http://127.0.0.1:99999/team/x.mar",
        "http:///team/x.mar",
    ):
        with pytest.raises(UrlNotAllowed):
            _read(url, tmp_path, f"{server}/team/")
    with pytest.raises(UrlNotAllowed):
        _read(f"{server}/team/x.mar", tmp_path)
    assert Server.asked == []


def test_a_signature_is_asked_for_beside_the_archive(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"{server}/team/"
    both = ["/team/x.mar.sigstore.json", "/team/x.mar.provenance.sigstore.json"]
    assert signature_at(f"{prefix}x.mar", tmp_path, [prefix]) == SignatureFiles(BODY, BODY)
    assert Server.asked == both
    assert signature_at(f"{prefix}alone.mar", tmp_path, [prefix]) == SignatureFiles(BODY)
    for name in ("none.mar", "moved.mar", "secret.mar"):
        assert signature_at(prefix + name, tmp_path, [prefix]) is None
    assert all(path.startswith("/team/") for path in Server.asked), "a redirect was followed"
    with pytest.raises(ArchiveNotFound, match="answered 503"):
        signature_at(f"{prefix}broken.mar", tmp_path, [prefix])
    monkeypatch.setattr(archive_urls, "MAX_BUNDLE_BYTES", len(BODY) - 1)
    with pytest.raises(SignatureUnreadable, match="more than 9 bytes"):
        signature_at(f"{prefix}x.mar", tmp_path, [prefix])
    count = len(Server.asked)
    with pytest.raises(UrlNotAllowed):
        signature_at(f"{server}/secret/x.mar", tmp_path, [prefix])
    assert len(Server.asked) == count


def test_a_signature_lies_where_the_archive_lies(tmp_path: Path) -> None:
    folder, store = tmp_path / "folder", tmp_path / "store"
    kept = store / "tagger" / "2"
    for place in (folder, kept):
        place.mkdir(parents=True)
        for name in ("tagger-2.mar", "bare-2.mar", "link-2.mar"):
            (place / name).write_bytes(b"an archive")
        (place / "tagger-2.mar.sigstore.json").write_bytes(BODY)
    prefix = f"{folder.as_uri()}/"
    for url in (f"{prefix}tagger-2.mar", "tagger-2.mar"):
        assert signature_at(url, store, [prefix]) == SignatureFiles(BODY)
    for name in ("ledger.sqlite", "bare-2.mar"):
        (store / name).write_bytes(b"")
    for url in (f"{prefix}bare-2.mar", "bare-2.mar"):
        assert signature_at(url, store, [prefix]) is None
    for url in ("ledger.sqlite", "tagger-3.mar"):
        with pytest.raises(ArchiveNotFound):
            signature_at(url, store, [prefix])
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (folder / "link-2.mar.sigstore.json").symlink_to(secret)
    with pytest.raises(UrlNotAllowed):
        signature_at(f"{prefix}link-2.mar", store, [prefix])
    (store / "link-2.mar").write_bytes(b"an archive")
    (store / "link-2.mar.sigstore.json").symlink_to(secret)
    assert signature_at("link-2.mar", store, [prefix]) is None


def test_files_of_allowed_folders_are_read(tmp_path: Path) -> None:
    folder, store = tmp_path / "a folder", tmp_path / "store"
    for place in (folder / "deep", store, tmp_path / "a folder2"):
        place.mkdir(parents=True)
        (place / "x.mar").write_bytes(BODY)
    (folder / "out.mar").symlink_to(store / "x.mar")
    prefix = f"{folder.as_uri()}/"
    assert _read(f"{folder.as_uri()}/deep/x.mar", store, prefix) == ("x.mar", 10, BODY)
    for url in (
        f"{folder.as_uri()}/out.mar",
        f"{folder.as_uri()}2/x.mar",
        f"{folder.as_uri()}/../store/x.mar",
    ):
        with pytest.raises(UrlNotAllowed):
            _read(url, store, prefix)
    with pytest.raises(ArchiveNotFound):
        _read(f"{folder.as_uri()}/none.mar", store, prefix)
    with pytest.raises(ArchiveNotFound):
        _read(f"{folder.as_uri()}/deep", store, prefix)
    with pytest.raises(UrlNotAllowed):
        _read(f"{folder.as_uri()}/deep/x.mar", store)


def test_the_store_has_names_and_kept_archives(tmp_path: Path) -> None:
    folder = tmp_path / "tagger" / "2"
    folder.mkdir(parents=True)
    (folder / "tagger-2.mar").write_bytes(BODY)
    assert _read("tagger-2.mar", tmp_path)[2] == BODY
    (tmp_path / "any.mar").write_bytes(BODY)
    assert _read("any.mar", tmp_path)[0] == "any.mar"
    with pytest.raises(ArchiveNotFound):
        _read("tagger-3.mar", tmp_path)


def test_links_that_lead_to_each_other_are_no_archive(tmp_path: Path) -> None:
    (tmp_path / "loop.mar").symlink_to("loop.mar")
    for url in ("loop.mar", f"{tmp_path.as_uri()}/loop.mar"):
        with pytest.raises(ArchiveNotFound):
            _read(url, tmp_path, f"{tmp_path.as_uri()}/")


@pytest.mark.parametrize(
    "wrong",
    ["https://models.example", "https://models.example/team", "ftp://x/", "/srv/", "file://srv"],
)
def test_an_allowed_address_is_a_folder(wrong: str) -> None:
    with pytest.raises(ValidationError):
        ControlSettings(allowed_urls=(wrong,))


def test_allowed_addresses_are_read_from_a_variable() -> None:
    urls: object = "https://models.example/a/, file:///srv/b/"
    settings = ControlSettings.model_validate({"allowed_urls": urls})
    assert settings.allowed_urls == ("https://models.example/a/", "file:///srv/b/")
