"""Who calls: the owner, by the key in his file and from this machine alone, or the holder of a
named key."""

import hmac
import ipaddress
from contextlib import suppress

from starlette.types import Scope

from vlserve.control.named_keys import OWNER, Holder, NamedKeys


class Callers:
    """Knows callers by their keys. ``owner_key``: what the owner's file holds."""

    def __init__(self, owner_key: str, keys: NamedKeys) -> None:
        self._owner_key = owner_key.encode()
        self._named = keys

    def holder_of(self, key: str, scope: Scope) -> Holder | None:
        """Return who sent ``key`` with the request of ``scope``; None for a key that is none."""
        owner = hmac.compare_digest(key.encode(), self._owner_key)
        holder = self._named.holder_of(key)
        return OWNER if owner and is_local(scope) else holder

    def is_in_force(self, holder: Holder) -> bool:
        """Return whether the key of a holder still is."""
        return self._named.is_in_force(holder)


def is_local(scope: Scope) -> bool:
    """Return whether a request comes from this machine: from loopback, or from the very address
    that it was sent to."""
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    with suppress(ValueError):  # a name is no address
        address = ipaddress.ip_address(client[0])
        source = getattr(address, "ipv4_mapped", None) or address
        return bool(source.is_loopback) or bool(server and client[0] == server[0])
    return False
