"""Release events for a webhook, signed as Standard Webhooks asks: https://www.standardwebhooks.com

A thread of its own posts them one after the other; what the ledger has and the webhook was not told
is the queue, so nothing is lost by a restart, and no release waits for a receiver.
"""

import base64
import hashlib
import hmac
import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx

from vlserve.control.domain import Event, Trouble
from vlserve.control.key import write_private
from vlserve.control.store.release_events import MESSAGE_TYPES, ReleaseEvent, ReleaseEvents
from vlserve.control.trouble_log import TroubleLog
from vlserve.errors import SettingsError, VlserveError
from vlserve.runtime.errors import printable
from vlserve.settings import Settings

RETRY_FOR_S = 3600.0
"""After which an event that the receiver does not take is given up."""
ATTEMPT_S = 10.0
LONGEST_WAIT_S = 60.0
"""Between two attempts; the first waits are 1, 2, 4, … s."""
TOLD_AFTER = 3
"""Attempts that fail before health tells of it."""
_POLL_S = 1.0
_MOST_REASON_CHARS = 2000
_MOST_WHY_CHARS = 200
_SECRET_PREFIX = "whsec_"
_SECRET_BYTES = (24, 64)
_BY_HAND = {"rolled_back": "rolled back by hand", "aborted": "aborted by hand"}
_TOLD = ("previous", "stable", "weights", "by", "key")

logger = logging.getLogger(__name__)


def read_secret(file: Path) -> bytes:
    """Return the key of the secret in ``file``, which is made where it is missing.

    Raises:
        SettingsError: it is no secret of Standard Webhooks, others may read it, or it cannot be
            read. No message has any of it.
    """
    try:
        if not file.exists():
            secret = base64.b64encode(os.urandom(_SECRET_BYTES[0])).decode()
            write_private(file, f"{_SECRET_PREFIX}{secret}")
        if file.stat().st_mode & 0o027:
            raise SettingsError(
                f"others may read or write {file}, the secret of the webhook: `chmod 600` it"
            )
        text = file.read_text(encoding="ascii").strip()
        key = base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except OSError as error:
        raise SettingsError(
            f"the secret of the webhook, {file}, cannot be read or made: {error.strerror or error}"
        ) from error
    except ValueError:  # no ASCII, or no base64
        text, key = "", b""
    least, most = _SECRET_BYTES
    if not (text.startswith(_SECRET_PREFIX) and least <= len(key) <= most):
        raise SettingsError(
            f"{file} holds no secret of a webhook: {_SECRET_PREFIX} and the base64 of {least} to "
            f"{most} bytes. Where it is missing, one is made"
        )
    return key


def trusted(ca_file: Path | None) -> ssl.SSLContext:
    """Return what judges a receiver's certificate. SettingsError: the file cannot be used."""
    try:
        return httpx.create_ssl_context(
            verify=ssl.create_default_context(cafile=ca_file) if ca_file else True, trust_env=False
        )
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(f"webhook.ca_file {ca_file} cannot be used: {error}") from error


def message_of(release_event: ReleaseEvent) -> tuple[str, bytes]:
    """Return the id of an event's message, the same at each attempt, and its body."""
    event = release_event.event
    name = json.dumps([release_event.id, event.at, event.model, event.version, event.kind])
    content = {
        "type": MESSAGE_TYPES[event.kind],
        "timestamp": event.at,
        "data": {"model": event.model, "version": event.version, **_data(event)},
    }
    body = json.dumps(content).encode()
    return f"evt_{hashlib.sha256(name.encode()).hexdigest()[:32]}", body


def _data(event: Event) -> Mapping[str, Any]:
    data = {name: event.detail[name] for name in _TOLD if name in event.detail}
    reason = str(event.detail.get("reason") or _BY_HAND.get(event.kind, ""))
    return data | ({"reason": reason[:_MOST_REASON_CHARS]} if reason else {})


def signed(key: bytes, name: str, at: int, body: bytes) -> Mapping[str, str]:
    """Return the headers of a message: ``name`` is its id, ``at`` the Unix time, s."""
    digest = hmac.new(key, f"{name}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


@dataclass(frozen=True)
class Receiver:
    """Who is told. ``key``: of the secret; ``tls``: what judges the receiver's certificate."""

    url: str
    key: bytes = field(repr=False)
    tls: ssl.SSLContext


def receiver_of(settings: Settings) -> Receiver | None:
    """Return whom the settings name, if anybody. SettingsError: the secret or the certificates
    cannot be used."""
    url, ca_file = settings.webhook.url, settings.webhook.ca_file
    if url is None:
        return None
    tls = trusted(ca_file and settings.project_dir / ca_file)
    return Receiver(url, read_secret(settings.webhook_secret_file), tls)


class Webhook:
    """One receiver, told in order: the next event waits for the one before."""

    def __init__(
        self, events: ReleaseEvents, receiver: Receiver, now: Callable[[], float] = time.time
    ) -> None:
        self._events = events
        self._receiver = receiver
        address = urlsplit(receiver.url)
        self._host = f"{address.scheme}://{address.netloc}"  # a path may be a secret
        self._now = now
        self._told: int | None = None
        self._failures = 0
        self._why = ""
        self._given_up = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin no other attempt. One that is under way is not waited for: it is made again."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_POLL_S)

    def troubles(self) -> Iterator[Trouble]:
        """Yield what the receiver does not take."""
        if self._failures >= TOLD_AFTER and self._told is not None:
            count = self._events.count_after(self._told)
            yield Trouble(
                "webhook",
                f"{self._host} is not told of {count} release event(s) and is tried again, each "
                f"for an hour: {self._why}",
            )
        if self._given_up:
            yield Trouble(
                "webhook",
                f"{self._host} was never told of {self._given_up} release event(s), which were "
                "given up after an hour: `vlserve history` has them. This goes with the next event "
                "that it takes",
            )

    def step(self) -> float:
        """Tell of the oldest event, if there is one; return for how long to wait then, s."""
        if self._told is None:
            self._told = self._events.told()
        event = self._events.oldest_after(self._told)
        if event is None:
            return _POLL_S
        why = self._attempt(event)
        if not why:
            self._failures, self._given_up = 0, 0
        elif self._now() - _unix(event.event.at) < RETRY_FOR_S:
            self._failures, self._why = self._failures + 1, why
            if self._failures == TOLD_AFTER:
                logger.warning("%s takes no release events: %s", self._host, why)
            return min(LONGEST_WAIT_S, 2.0 ** min(self._failures - 1, 10))
        else:
            self._given_up += 1
            logger.error("event %s of %s given up: %s", event.id, event.event.model, why)
        self._told = event.id  # also where the ledger cannot keep it: then it is told once more
        self._events.tell(event.id)
        return 0.0

    def _attempt(self, event: ReleaseEvent) -> str:
        """Post one event; return why it was not taken, or nothing."""
        name, body = message_of(event)
        headers = signed(self._receiver.key, name, int(self._now()), body)
        try:
            status = anyio.run(self._post, headers, body)
        except TimeoutError:
            return f"no answer within {ATTEMPT_S:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            reason = printable(str(error) or type(error).__name__)
            return reason.replace(self._receiver.url, self._host)[:_MOST_WHY_CHARS]
        return "" if HTTPStatus(200) <= status < HTTPStatus(300) else f"it answered {status}"

    async def _post(self, headers: Mapping[str, str], body: bytes) -> int:
        """Return the status; the rest of the answer is not read, and no redirect is followed."""
        with anyio.fail_after(ATTEMPT_S):
            async with (
                httpx.AsyncClient(
                    verify=self._receiver.tls,
                    trust_env=False,
                    follow_redirects=False,
                    timeout=ATTEMPT_S,
                ) as http,
                http.stream("POST", self._receiver.url, headers=headers, content=body) as answer,
            ):
                return answer.status_code

    def _run(self) -> None:
        wait_s, log = 0.0, TroubleLog(logger)
        while not self._stopping.wait(wait_s):
            try:
                wait_s = self.step()
                log.note("webhook", "")
            except VlserveError as error:  # of the ledger
                wait_s = _POLL_S
                if not self._stopping.is_set():
                    log.note("webhook", str(error))
            except Exception:
                wait_s = LONGEST_WAIT_S
                logger.exception("webhook")


def _unix(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
