"""Which archives are registered and loaded by their signature, and which serve on without."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.rollout_traffic import kinds, look, start
from support.signed_store import Archive, SignedStore, revoke
from support.signers import KeyPair, key_pair
from vlserve.control.domain import RolloutStatus, Signer, State
from vlserve.errors import (
    NotReady,
    SignatureMismatch,
    SignatureMissing,
    SignatureRefused,
    SignatureUnknownKey,
    SignatureUnreadable,
    StoreUnwritable,
)
from vlserve.settings import Settings
from vlserve.settings_sections import TrustSettings
from vlserve.signing.beside import (
    SignatureFiles,
    provenance_file,
    read_beside,
    signature_file,
)

KEY = ("tagger", 1)


@pytest.fixture
def ours(tmp_path: Path) -> KeyPair:
    return key_pair(tmp_path, "release")


@pytest.fixture
def theirs(tmp_path: Path) -> KeyPair:
    return key_pair(tmp_path, "stranger")


@pytest.fixture
def store(
    settings: Settings, engine: FakeEngine, gateway: FakeGateway, pack: Archive, ours: KeyPair
) -> Iterator[SignedStore]:
    trust = TrustSettings(mode="enforce", keys=(ours.public,))
    store = SignedStore(settings.model_copy(update={"trust": trust}), engine, gateway, pack)
    yield store
    store.control.stop()


def test_a_trusted_signature_is_kept_and_named(store: SignedStore, ours: KeyPair) -> None:
    files = store.files(1, ours)
    registration = store.register(1, files)
    signer = Signer("release", ours.known.hint, ours.known.pem)
    assert (registration.state, registration.signer) == (State.READY, signer)
    assert read_beside(store.archive(1)) == files
    [version] = store.control.service.model("tagger").versions
    assert version.signer == signer
    event, *_ = store.control.service.history("tagger")
    assert event.detail["signer"] == f"release ({ours.known.hint[:12]})"
    assert store.warnings == ()


def test_what_no_trusted_key_signed_is_refused_with_its_code(
    store: SignedStore, ours: KeyPair, theirs: KeyPair
) -> None:
    good, other = store.files(1, ours), store.files(2, ours)
    stranger = store.files(1, theirs)
    cases: list[tuple[SignatureFiles | None, type[SignatureRefused]]] = [
        (None, SignatureMissing),
        (stranger, SignatureUnknownKey),
        (other, SignatureMismatch),
        (SignatureFiles(good.signature, other.provenance), SignatureMismatch),
        (SignatureFiles(good.signature, stranger.provenance), SignatureUnknownKey),
        (SignatureFiles(good.provenance, good.provenance), SignatureUnreadable),
        (SignatureFiles(good.signature, good.signature), SignatureUnreadable),
        (SignatureFiles(good.signature[:-40], good.provenance), SignatureUnreadable),
    ]
    for files, refusal in cases:
        with pytest.raises(refusal) as error:
            store.register(1, files)
        assert type(error.value) is refusal
    assert store.control.ledger.find(*KEY) is None
    assert not list(store.settings.model_store.glob("tagger/*/*"))


def test_a_signature_alone_is_enough(store: SignedStore, ours: KeyPair) -> None:
    """model-signing writes no provenance."""
    assert store.register(1, SignatureFiles(store.files(1, ours).signature)).signer is not None
    assert not provenance_file(store.archive(1)).exists()


def test_a_revoked_key_registers_and_releases_nothing(store: SignedStore, ours: KeyPair) -> None:
    store.register(1, store.files(1, ours))
    files = store.files(2, ours)
    revoke(ours)
    with pytest.raises(SignatureUnknownKey):
        store.register(2, files)
    with pytest.raises(SignatureUnknownKey):
        store.control.service.release(*KEY)
    [warning] = [each for each in store.warnings if "tagger 1" in each]
    assert "not in trust.keys any more" in warning
    assert [each for each in store.warnings if each.startswith("trust.keys:")]


def test_a_revoked_key_takes_nothing_down_that_serves(store: SignedStore, ours: KeyPair) -> None:
    """Nor the version to go back to: both are loaded again after a restart; the third is not."""
    for version in (1, 2, 3):
        store.register(version, store.files(version, ours))
    store.control.service.release("tagger", 1)
    store.control.service.release("tagger", 2)
    revoke(ours)
    store.restart()
    store.tick()
    assert set(store.engine.held["engine-0"]) == {("tagger", 1), ("tagger", 2)}
    reasons = {each.version: each.reason for each in store.control.service.model("tagger").versions}
    assert "none of those that are trusted" in reasons[3]
    assert not (reasons[1] or reasons[2])
    assert [each for each in store.warnings if "tagger 2 was signed by release" in each]
    assert store.control.service.rollback("tagger").version == 1


def test_the_way_back_is_not_asked_for_a_key(store: SignedStore, ours: KeyPair) -> None:
    for version in (1, 2):
        store.register(version, store.files(version, ours))
        store.control.service.release("tagger", version)
    store.tick()
    revoke(ours)
    signature_file(store.archive(1)).unlink()
    assert store.control.service.rollback("tagger").version == 1


def test_a_shadow_ends_with_its_key(store: SignedStore, ours: KeyPair) -> None:
    for version in (1, 2):
        store.register(version, store.files(version, ours))
    store.control.service.release("tagger", 1)
    start(store.control, shadow_percent=50)
    store.control.rollout_loop.tick()
    assert look(store.control).status is RolloutStatus.RUNNING
    revoke(ours)
    with pytest.raises(NotReady, match="none of those that are trusted"):
        store.control.service.rollouts.promote("tagger")
    store.control.rollout_loop.tick()
    last = look(store.control)
    assert (last.status, last.weight) == (RolloutStatus.ROLLED_BACK, 0)
    assert last.decision is not None and "none of those that are trusted" in last.decision.reason
    assert (store.gateway.route().shadow, store.gateway.route().weights) == (None, {1: 100})
    [event] = [e for e in store.control.ledger.events("tagger") if e.kind == "rolled_back"]
    assert (event.detail["by"], event.detail["previous"]) == ("trust", 2)
    assert "none of those that are trusted" in event.detail["reason"]


def test_a_candidate_with_weight_goes_on_without_its_key(store: SignedStore, ours: KeyPair) -> None:
    for version in (1, 2):
        store.register(version, store.files(version, ours))
    store.control.service.release("tagger", 1)
    start(store.control)
    revoke(ours)
    store.control.rollout_loop.tick()
    assert look(store.control).status is RolloutStatus.RUNNING
    store.control.service.rollouts.promote("tagger")
    assert store.gateway.route().weights == {2: 100}


def test_a_shadow_goes_on_where_a_kept_signature_is_trusted(
    store: SignedStore, ours: KeyPair
) -> None:
    """The ledger does not know who signed what was loaded before `enforce`."""
    store.restart("off")
    store.register(1, None)
    store.register(2, store.files(2, ours))
    store.control.service.release("tagger", 1)
    start(store.control, shadow_percent=50)
    store.restart("enforce")
    store.control.rollout_loop.tick()
    assert look(store.control).status is RolloutStatus.RUNNING
    signature_file(store.archive(2)).unlink()
    store.control.rollout_loop.tick()
    last = look(store.control)
    assert last.status is RolloutStatus.ROLLED_BACK
    assert last.decision is not None and "tagger 2 has no signature" in last.decision.reason


def test_other_bytes_or_a_wrong_signature_are_never_loaded(
    store: SignedStore, ours: KeyPair
) -> None:
    """Also of what has weight, and whatever became of the key."""
    files = store.files(1, ours)
    store.register(1, files)
    store.control.service.release(*KEY)
    archive = store.archive(1)
    whole = archive.read_bytes()
    bundle = json.loads(files.signature)
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = "AAAA"
    forgery = json.dumps(bundle).encode()
    for trusted in (True, False):
        if not trusted:
            revoke(ours)
        for change, code in (
            (lambda: archive.write_bytes(whole + b"x"), "bytes that were registered"),
            (lambda: signature_file(archive).write_bytes(forgery), "did not sign this"),
            (lambda: signature_file(archive).write_bytes(b"{"), "no JSON"),
        ):
            change()
            store.restart()
            store.tick()
            assert store.engine.held["engine-0"] == {}
            [version] = store.control.service.model("tagger").versions
            assert code in version.reason
            archive.write_bytes(whole)
            signature_file(archive).write_bytes(files.signature)
    store.restart()
    store.tick()
    assert set(store.engine.held["engine-0"]) == {KEY}


def test_a_kept_signature_that_is_lost_is_told(store: SignedStore, ours: KeyPair) -> None:
    files = store.files(1, ours)
    store.register(1, files)
    kept = signature_file(store.archive(1))
    kept.unlink()
    [warning] = store.warnings
    assert f"{kept} is gone" in warning and "`vlserve register` of the same tagger-1.mar" in warning
    kept.write_bytes(b"{")
    [warning] = store.warnings
    assert "the signature of tagger 1" in warning and "until the engine restarts" in warning
    store.register(1, files)
    assert store.warnings == ()


def test_a_strangers_signature_in_the_store_does_not_count(
    store: SignedStore, ours: KeyPair, theirs: KeyPair
) -> None:
    store.register(1, store.files(1, ours))
    store.control.service.release(*KEY)
    stranger = store.files(1, theirs)
    signature_file(store.archive(1)).write_bytes(stranger.signature)
    store.restart()
    store.tick()
    assert store.engine.held["engine-0"] == {}
    store.register(1, store.files(1, ours))
    assert set(store.engine.held["engine-0"]) == {KEY}


def test_enforce_takes_down_nothing_that_served_unsigned(store: SignedStore) -> None:
    store.restart("off")
    store.register(1, None)
    store.register(2, None)
    store.control.service.release(*KEY)
    assert store.warnings == ()
    store.restart("enforce")
    store.tick()
    assert set(store.engine.held["engine-0"]) == {KEY}
    assert [each for each in store.warnings if "tagger 1 is loaded" in each]
    with pytest.raises(SignatureMissing):
        store.control.service.release("tagger", 2)


def test_warn_loads_and_warns_and_still_refuses_what_is_signed_wrong(
    store: SignedStore, ours: KeyPair, theirs: KeyPair
) -> None:
    store.restart("warn")
    assert store.register(1, None).state is State.READY
    assert store.register(2, store.files(2, theirs)).signer is None
    assert store.register(3, store.files(3, ours)).signer is not None
    assert len(store.warnings) == 2
    with pytest.raises(SignatureMismatch):
        store.register(4, store.files(3, ours))


def test_off_verifies_no_key_and_refuses_another_archives_signature(
    store: SignedStore, theirs: KeyPair
) -> None:
    store.restart("off")
    registration = store.register(1, store.files(1, theirs))
    assert (registration.state, registration.signer) == (State.READY, None)
    assert signature_file(store.archive(1)).exists()
    with pytest.raises(SignatureMismatch):
        store.register(2, store.files(1, theirs))


def test_who_signed_is_noted_when_trust_is_switched_on(store: SignedStore, ours: KeyPair) -> None:
    store.restart("off")
    store.register(1, store.files(1, ours))
    store.control.service.release(*KEY)
    store.restart("enforce")
    store.tick()
    [version] = store.control.service.model("tagger").versions
    assert version.signer is not None and version.signer.name == "release"
    assert "signed" in kinds(store.control)


def test_signed_anew_by_another_key(store: SignedStore, ours: KeyPair, tmp_path: Path) -> None:
    store.register(1, store.files(1, ours))
    newer = key_pair(tmp_path, "newer")
    ours.public.write_bytes(newer.public.read_bytes())
    registration = store.register(1, store.files(1, newer))
    assert (registration.already_registered, registration.signer and registration.signer.hint) == (
        True,
        newer.known.hint,
    )
    assert store.control.service.release(*KEY).version == 1
    assert store.warnings == ()


def test_the_same_archive_without_its_signature_keeps_it(store: SignedStore, ours: KeyPair) -> None:
    files = store.files(1, ours)
    store.register(1, files)
    assert store.register(1, None).already_registered
    assert read_beside(store.archive(1)) == files


def test_deleted_with_its_archive(store: SignedStore, ours: KeyPair) -> None:
    store.register(1, store.files(1, ours))
    folder = store.archive(1).parent
    store.control.service.unload(*KEY)
    store.control.service.delete(*KEY)
    assert not folder.exists()


def test_engines_read_a_copy_that_nobody_can_replace(
    store: SignedStore, ours: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.register(1, store.files(1, ours))
    store.control.service.unload(*KEY)
    archive, load = store.archive(1), store.engine.load
    whole, copies = archive.read_bytes(), list[Path]()

    def replace_and_load(model: str, version: int, file: Path, *more: Any, **options: Any) -> None:
        archive.write_bytes(b"another")
        assert file.read_bytes() == whole
        assert file.stat().st_mode & 0o077 == 0 or file.parent.stat().st_mode & 0o077 == 0
        copies.append(file)
        load(model, version, file, *more, **options)

    monkeypatch.setattr(store.engine, "load", replace_and_load)
    store.control.service.release(*KEY)
    [copy] = copies
    assert (copy.name, copy.exists()) == (archive.name, False)
    store.restart()
    store.tick()
    assert store.engine.held["engine-0"] == {}


def test_a_full_disk_keeps_a_copy_from_being_made(
    store: SignedStore, ours: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.register(1, store.files(1, ours))
    store.control.service.unload(*KEY)
    monkeypatch.setattr("vlserve.control.lifecycle.archive_bytes.has_room", lambda *_: False)
    with pytest.raises(StoreUnwritable, match="where engines read it"):
        store.control.service.release(*KEY)


@pytest.mark.parametrize("mode", ["warn", "enforce"])
def test_trust_without_keys_is_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=r"needs trust\.keys"):
        TrustSettings(mode=mode)  # type: ignore[arg-type]


def test_key_files_are_relative_to_the_project(tmp_path: Path) -> None:
    trust = TrustSettings(mode="warn", keys=(Path("keys/release.pem"),))
    settings = Settings(project_dir=tmp_path, trust=trust)
    assert settings.trust.keys == (tmp_path / "keys" / "release.pem",)
    assert json.loads(settings.trust.model_dump_json())["keys"] == [str(settings.trust.keys[0])]
