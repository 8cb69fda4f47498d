"""Request ids of a request's items, by which logs, captures and a release tell them apart."""

import re
from dataclasses import dataclass

_ITEM = re.compile(r"(.*)~(\d{1,6})~(\d{1,6})", re.DOTALL)
"""No client's id has a ~: the gateway takes letters, digits and _.:- alone."""


@dataclass(frozen=True)
class ItemId:
    """``request_id``: the client's. ``index``: from 0. ``items``: of the request, more than one."""

    request_id: str
    index: int
    items: int

    def __str__(self) -> str:
        return f"{self.request_id}~{self.index}~{self.items}"


def item_id(request_id: str, index: int, items: int) -> str:
    """Return an item's id; that of a single item is its request's."""
    return request_id if items == 1 else str(ItemId(request_id, index, items))


def read_item_id(text: str) -> ItemId | None:
    """Return what an id says of its item; None of a request that is one item."""
    match = _ITEM.fullmatch(text) if "~" in text else None
    return ItemId(match[1], int(match[2]), int(match[3])) if match else None
