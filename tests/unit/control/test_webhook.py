"""The webhook is told of releases: signed, in order, for an hour, and nothing waits for it."""

import base64
import logging
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from pydantic import ValidationError

from support.certificates import make_certificate
from support.control_fakes import FakeEngine, FakeGateway
from support.rollout_traffic import Behaviour, Requests, drive, register, start
from support.webhook_receiver import Receiver, drip, endless, hang, reset, status
from vlserve.control import webhook as webhook_module
from vlserve.control.assembly import Control, assemble
from vlserve.control.store.release_events import ReleaseEvents
from vlserve.control.webhook import (
    LONGEST_WAIT_S,
    RETRY_FOR_S,
    Webhook,
    read_secret,
    receiver_of,
    signed,
    trusted,
)
from vlserve.errors import LedgerFull, SettingsError
from vlserve.settings import Settings
from vlserve.settings_sections import WebhookSettings

KEY = b"k" * 24


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def to(receiver: Receiver) -> webhook_module.Receiver:
    return webhook_module.Receiver(receiver.url, KEY, trusted(None))


@pytest.fixture
def webhook(tagger: Control, receiver: Receiver, clock: Clock) -> Webhook:
    """A webhook of tagger's ledger, stepped by hand; it knows what was before it."""
    webhook = Webhook(ReleaseEvents(tagger.ledger), to(receiver), clock)
    webhook.step()
    assert receiver.got == []
    return webhook


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def release(control: Control, *versions: int) -> None:
    for version in versions:
        control.service.release("tagger", version)


def test_signatures_are_those_of_standard_webhooks() -> None:
    """A published example of Svix, from whom the standard comes."""
    headers = signed(
        base64.b64decode("plJ3nmyCDGBKInavdOK15jsl"),
        "msg_loFOjxBNrRLzqYUf",
        1731705121,
        b'{"event_type":"ping","data":{"success":true}}',
    )
    assert headers["webhook-signature"] == "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="


def test_a_rollout_is_told_step_by_step(
    tagger: Control, webhook: Webhook, receiver: Receiver, requests: Requests
) -> None:
    start(tagger)
    drive(tagger, requests)
    assert tagger.ledger.model("tagger").stable == 2
    while webhook.step() == 0.0:
        continue
    assert receiver.kinds == ["release.started", *["release.advanced"] * 2, "release.promoted"]
    first, last = receiver.got[0][1]["data"], receiver.got[-1][1]["data"]
    assert (first["model"], first["version"], first["stable"]) == ("tagger", 2, 1)
    assert (last["version"], last["previous"], last["weights"]) == (2, 1, {"2": 100})
    for headers, _, raw in receiver.got:
        name, at = headers["webhook-id"], int(headers["webhook-timestamp"])
        assert headers["webhook-signature"] == signed(KEY, name, at, raw)["webhook-signature"]
    assert len({headers["webhook-id"] for headers, _, _ in receiver.got}) == 4


def test_a_rollback_is_told_with_its_reason(
    tagger: Control, webhook: Webhook, receiver: Receiver, requests: Requests
) -> None:
    start(tagger)
    drive(tagger, requests, {2: Behaviour(fail_rate=0.5)})
    while webhook.step() == 0.0:
        continue
    assert receiver.kinds[-1] == "release.rolled_back"
    data = receiver.got[-1][1]["data"]
    assert (data["version"], data["previous"], data["by"]) == (1, 2, "judge")
    assert data["reason"].startswith("errors: candidate failed")
    release(tagger, 2)
    tagger.service.rollback("tagger")
    start(tagger)
    tagger.service.rollouts.abort("tagger")
    while webhook.step() == 0.0:
        continue
    reasons = [body["data"].get("reason") for _, body, _ in receiver.got[-4:]]
    assert reasons == [None, "rolled back by hand", None, "aborted by hand"]


FAULTS: dict[str, tuple[Callable[[BaseHTTPRequestHandler], None], str]] = {
    "500": (status(500), "answered 500"),
    "404": (status(404), "answered 404"),
    "redirect": (status(302, Location="file:///etc/passwd"), "answered 302"),
    "reset": (reset, ""),
    "hang": (hang, "no answer within"),
    "drip": (drip, "no answer within"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_receiver_that_fails_is_tried_again(
    fault: str,
    tagger: Control,
    webhook: Webhook,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver.answer, message = FAULTS[fault]
    if "no answer" in message:
        monkeypatch.setattr(webhook_module, "ATTEMPT_S", 0.3)
    release(tagger, 2)
    assert [webhook.step() for _ in range(4)] == [1.0, 2.0, 4.0, 8.0]
    (trouble,) = webhook.troubles()
    assert "is not told of 1 release event(s)" in trouble.message
    assert message in trouble.message
    assert "a-secret-path" not in trouble.message
    assert len({headers["webhook-id"] for headers, _, _ in receiver.got}) == 1
    monkeypatch.setattr(webhook_module, "ATTEMPT_S", 30.0)
    receiver.answer = status(200)
    assert webhook.step() == 0.0
    assert list(webhook.troubles()) == []


def test_nobody_listens(tagger: Control, webhook: Webhook, receiver: Receiver) -> None:
    receiver.shutdown()
    receiver.server_close()
    release(tagger, 2)
    waits = [webhook.step() for _ in range(12)]
    assert waits[-1] == LONGEST_WAIT_S
    (trouble,) = webhook.troubles()
    assert "a-secret-path" not in trouble.message


def test_a_receiver_may_have_a_certificate_of_its_own(
    tagger: Control, receiver: Receiver, settings: Settings, tmp_path: Path
) -> None:
    tls = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
    url = receiver.url.replace("http:", "https:")

    def webhook_with(ca_file: Path | None) -> Webhook:
        about = WebhookSettings(url=url, ca_file=ca_file)
        target = receiver_of(settings.model_copy(update={"webhook": about}))
        assert target is not None
        return Webhook(ReleaseEvents(tagger.ledger), target)

    strict = webhook_with(None)
    strict.step()
    release(tagger, 2)
    assert [strict.step() for _ in range(3)] == [1.0, 2.0, 4.0]
    assert "certificate" in next(strict.troubles()).message
    assert webhook_with(tls.certificate).step() == 0.0
    assert receiver.kinds == ["release.promoted"]
    with pytest.raises(SettingsError, match=r"webhook\.ca_file .* cannot be used"):
        webhook_with(tls.key)


def test_an_endless_answer_is_not_read(
    tagger: Control, webhook: Webhook, receiver: Receiver
) -> None:
    receiver.answer = endless
    release(tagger, 2)
    assert webhook.step() == 0.0


def test_events_wait_in_their_order_and_each_for_an_hour(
    tagger: Control, webhook: Webhook, receiver: Receiver, clock: Clock
) -> None:
    receiver.answer = status(503)
    release(tagger, 2)
    assert webhook.step() == 1.0
    clock.ahead_s = RETRY_FOR_S - 60
    assert webhook.step() > 0
    release(tagger, 1, 2)
    receiver.answer = status(200)
    while webhook.step() == 0.0:
        continue
    assert [body["data"]["version"] for _, body, _ in receiver.got] == [2, 2, 2, 1, 2]
    receiver.got.clear()
    receiver.answer = status(503)
    release(tagger, 1, 2)
    clock.ahead_s = 2 * RETRY_FOR_S
    assert [webhook.step(), webhook.step()] == [0.0, 0.0]
    (trouble,) = webhook.troubles()
    assert "was never told of 2 release event(s)" in trouble.message
    receiver.answer = status(200)
    release(tagger, 1)
    webhook.step()
    assert list(webhook.troubles()) == []


def test_a_restart_goes_on_where_it_was(
    tagger: Control, webhook: Webhook, receiver: Receiver
) -> None:
    release(tagger, 2)
    webhook.step()
    release(tagger, 1)
    release(tagger, 2)
    second = Webhook(ReleaseEvents(tagger.ledger), to(receiver))
    while second.step() == 0.0:
        continue
    assert [body["data"]["version"] for _, body, _ in receiver.got] == [2, 1, 2]


def test_an_event_is_told_though_the_ledger_is_full(
    tagger: Control, webhook: Webhook, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(tagger, 2)

    def full(*_: object) -> None:
        raise LedgerFull("no space")

    monkeypatch.setattr(webhook._events, "tell", full)
    with pytest.raises(LedgerFull):
        webhook.step()
    assert webhook.step() > 0
    assert len(receiver.got) == 1


def test_the_service_tells_and_no_release_waits(
    settings: Settings,
    engine: FakeEngine,
    gateway: FakeGateway,
    receiver: Receiver,
    pack: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.answer = hang
    settings = settings.model_copy(update={"webhook": WebhookSettings(url=receiver.url)})
    control = assemble(settings, engine, gateway)
    secret = settings.webhook_secret_file.read_text(encoding="ascii").strip()
    assert stat.S_IMODE(settings.webhook_secret_file.stat().st_mode) == 0o600
    try:
        register(control, pack("tagger", 1), pack("tagger", 2))
        control.start()
        wait_until(lambda: bool(control.ledger.database.query("SELECT told FROM webhook")))
        release(control, 1)
        wait_until(lambda: bool(receiver.got))
        release(control, 2, 1)
        assert gateway.route().weights == {1: 100}
        assert len(receiver.got) == 1
    finally:
        control.stop()
    assert secret not in caplog.text
    assert secret.removeprefix("whsec_") not in caplog.text


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("whsec_" + base64.b64encode(KEY).decode(), 0o644),
        ("whsec_" + base64.b64encode(KEY).decode(), 0o620),
        (base64.b64encode(KEY).decode(), 0o600),
        ("whsec_" + base64.b64encode(KEY[:23]).decode(), 0o600),
        ("whsec_" + base64.b64encode(KEY * 3).decode(), 0o600),
        ("whsec_not base64!", 0o600),
        ("whsec_" + "é" * 40, 0o600),
        ("", 0o600),
    ],
)
def test_a_secret_that_cannot_be_used_is_refused(tmp_path: Path, text: str, mode: int) -> None:
    file = tmp_path / "secret"
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)
    with pytest.raises(SettingsError) as error:
        read_secret(file)
    assert not text or text not in str(error.value)


def test_a_secret_is_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "secret"
    secret = read_secret(file)
    assert (len(secret), read_secret(file)) == (24, secret)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_secret(tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/",
        "example.com/hook",
        "http://",
        "http://[",
        "http://host:99999/",
        "http://host:0/",
        "http://user:word@host/",
        "http://host/a b",
        "https://host/" + "x" * 2048,
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        WebhookSettings(url=url)
