"""trust.mode enforce on a real stack: what is refused, and that what serves is left alone."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from support.background_load import QUESTION
from support.engines import on_triton
from support.running_stack import make_settings, wait_until
from support.signers import KeyPair, key_pair
from vlserve.control.domain import EngineKind
from vlserve.errors import (
    SignatureMismatch,
    SignatureMissing,
    SignatureUnknownKey,
    VlserveError,
)
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.errors import ArchiveTampered
from vlserve.settings_sections import TrustSettings
from vlserve.signing.archives import sign_archive
from vlserve.signing.beside import read_beside, signature_file
from vlserve.stack import stack as processes
from vlserve.testing import RunningStack, running_stack

pytestmark = on_triton

MODEL = "signed"


@dataclass(frozen=True)
class Trusting:
    """A stack that enforces signatures, with versions 1 (the way back) and 2 (stable) of a model,
    and keys."""

    running: RunningStack
    folder: Path
    ours: KeyPair
    theirs: KeyPair

    def archive(self, version: int, signer: KeyPair | None) -> Path:
        archive = pack_echo(self.folder / f"archive-{version}", MODEL, version)
        if signer is not None:
            sign_archive(archive, signer.key)
        return archive

    def register(self, archive: Path) -> None:
        self.running.control.register(archive, files=read_beside(archive))

    def ask(self) -> httpx.Response:
        return self.running.http.post(f"/predictions/{MODEL}", json=QUESTION)

    def answers(self) -> int:
        """Return the version that answers a client."""
        answer = self.ask()
        assert answer.status_code == 200, answer.text
        return int(answer.json()["version"])


@pytest.fixture(scope="module")
def strict_stack(
    engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trusting]:
    folder = tmp_path_factory.mktemp("trust")
    ours, theirs = key_pair(folder, "release"), key_pair(folder, "stranger")
    settings = make_settings(folder, engine_kind).model_copy(
        update={"trust": TrustSettings(mode="enforce", keys=(ours.public,))}
    )
    with running_stack(settings) as stack:
        strict_stack = Trusting(stack, folder, ours, theirs)
        for version in (1, 2):
            strict_stack.register(strict_stack.archive(version, ours))
            stack.control.release(MODEL, version)
        yield strict_stack


def test_who_signed_is_told(strict_stack: Trusting) -> None:
    signer = f"release ({strict_stack.ours.known.hint[:12]})"
    control = strict_stack.running.control
    assert [each.signer for each in control.model(MODEL).versions] == [signer] * 2
    event, *_ = control.history(MODEL)
    assert event.detail["signer"] == signer
    assert control.health().warnings == ()


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("unsigned", SignatureMissing),
        ("signed by a stranger", SignatureUnknownKey),
        ("signed for another archive", SignatureMismatch),
        ("tampered with", ArchiveTampered),
        ("tampered with, and packed anew", SignatureMismatch),
    ],
)
def test_what_is_not_trusted_is_refused(
    strict_stack: Trusting, wrong: str, code: type[VlserveError]
) -> None:
    signer = {"unsigned": None, "signed by a stranger": strict_stack.theirs}
    archive = strict_stack.archive(3, signer.get(wrong, strict_stack.ours))
    if wrong == "signed for another archive":
        other = strict_stack.archive(4, strict_stack.ours)
        shutil.copy(signature_file(other), signature_file(archive))
    if wrong == "tampered with":
        archive.write_bytes(archive.read_bytes().replace(b"echo", b"ECHO", 1))
    if wrong == "tampered with, and packed anew":
        signature = signature_file(archive).read_bytes()
        archive = pack_echo(strict_stack.folder / "anew", MODEL, 3, answer_shift=1)
        signature_file(archive).write_bytes(signature)
    with pytest.raises(code) as error:
        strict_stack.register(archive)
    assert type(error.value) is code
    versions = strict_stack.running.control.model(MODEL).versions
    assert [each.version for each in versions] == [1, 2]
    assert strict_stack.answers() == 2
    shutil.rmtree(archive.parent)


def test_a_revocation_takes_nothing_down_and_a_restart_brings_stable_back(
    strict_stack: Trusting,
) -> None:
    """What never had weight is not loaded again; other bytes are not loaded whoever signed them."""
    control = strict_stack.running.control
    strict_stack.register(strict_stack.archive(5, strict_stack.ours))
    strict_stack.ours.public.rename(strict_stack.ours.public.with_suffix(".revoked"))
    assert strict_stack.answers() == 2
    with pytest.raises(SignatureUnknownKey):
        strict_stack.register(strict_stack.archive(6, strict_stack.ours))
    with pytest.raises(SignatureUnknownKey):
        control.release(MODEL, 5)
    settings = strict_stack.running.settings
    processes.down(settings, print)
    with pytest.raises(VlserveError, match="signed 5 cannot be loaded again"):
        processes.up(settings, print)
    assert strict_stack.answers() == 2
    versions = {each.version: each for each in control.model(MODEL).versions}
    assert "none of those that are trusted" in versions[5].reason
    warnings = control.health().warnings
    assert [each for each in warnings if "signed 2 was signed by release" in each]
    assert control.rollback(MODEL).version == 1
    assert strict_stack.answers() == 1
    control.unload(MODEL, 2)
    with pytest.raises(SignatureUnknownKey):
        control.release(MODEL, 2)
    assert strict_stack.answers() == 1
    archive = settings.model_store / MODEL / "1" / f"{MODEL}-1.mar"
    bundle = json.loads(signature_file(archive).read_text(encoding="utf-8"))
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = "AAAA"
    signature_file(archive).write_text(json.dumps(bundle), encoding="utf-8")
    processes.down(settings, print)
    with pytest.raises(VlserveError, match="signed 1 cannot be loaded again"):
        processes.up(settings, print)
    assert "did not sign this" in control.model(MODEL).versions[0].reason
    strict_stack.ours.public.with_suffix(".revoked").rename(strict_stack.ours.public)
    strict_stack.register(strict_stack.archive(1, strict_stack.ours))
    wait_until(lambda: strict_stack.ask().is_success)
    assert strict_stack.answers() == 1
