"""Images that look alike, by their hashes: never by all pairs.

Two hashes that differ in at most DISTANCE bits agree in at least one of DISTANCE + 1 bands of bits,
so only images that share a band are compared (Manku et al., Detecting Near-Duplicates for Web
Crawling, WWW 2007).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

DISTANCE = 4
"""Bits of 64 in which near-duplicates differ at the most."""
COLOUR_DISTANCE = 24
"""Of the means of red, green and blue, 0 to 255."""
BANDS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))
"""First bit and number of bits."""
MOST_IN_BAND = 20_000
"""Of more images with one band, each is compared with the COMPARED next ones by colour alone."""
COMPARED = 1_000
_BLOCK = 512
_MOST_PAIRS = 2_000_000

Pairs = NDArray[np.int64]
"""(pairs, 2)"""


@dataclass(frozen=True)
class Groups:
    """``members``: of each group of two or more its images, by their places. ``complete``: whether
    every image was compared with all that share a band with it."""

    members: Sequence[Sequence[int]]
    complete: bool


def find_groups(hashes: NDArray[np.uint64], colours: NDArray[np.uint8]) -> Groups:
    """Return the groups of images that look alike, directly or by way of others.

    Args:
        hashes: (images,)
        colours: (images, 3), their mean colours.
    """
    rows = np.zeros(len(hashes), dtype=[("hash", np.uint64), ("colour", np.uint8, 3)])
    rows["hash"], rows["colour"] = hashes, colours
    _, first, kind = np.unique(
        rows.view(np.dtype((np.void, rows.dtype.itemsize))), return_index=True, return_inverse=True
    )
    own_hashes, own_colours = hashes[first], colours[first].astype(np.int16)
    pairs: list[Pairs] = []
    complete = True
    for start, bits in BANDS:
        band = (own_hashes >> np.uint64(start)) & np.uint64((1 << bits) - 1)
        for places in _sharing(band):
            whole = len(places) <= MOST_IN_BAND
            complete &= whole
            pairs += _alike(own_hashes, own_colours, places, len(places) if whole else COMPARED)
            if sum(map(len, pairs)) > _MOST_PAIRS:
                pairs = [_spanning(pairs, len(first))]
    component = _components(pairs, len(first))[kind.ravel()]
    return Groups(tuple(tuple(map(int, places)) for places in _sharing(component)), complete)


def _sharing(keys: NDArray[np.generic]) -> Iterator[NDArray[np.int64]]:
    """Yield the places of each key that two or more have."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.diff(keys[order])) + 1
    for places in np.split(order, ends):
        if len(places) > 1:
            yield places


def _alike(
    hashes: NDArray[np.uint64], colours: NDArray[np.int16], places: NDArray[np.int64], window: int
) -> Iterator[Pairs]:
    """Yield pairs among some images; each is compared with the ``window`` next ones."""
    if window < len(places):
        places = places[np.lexsort(colours[places].T)]
    for start in range(0, len(places), _BLOCK):
        rows = places[start : start + _BLOCK]
        columns = places[start : start + _BLOCK + window]
        near = np.bitwise_count(hashes[rows][:, None] ^ hashes[columns][None, :]) <= DISTANCE
        left, right = np.nonzero(near)
        later = right > left
        left, right = rows[left[later]], columns[right[later]]
        same = (np.abs(colours[left] - colours[right]) <= COLOUR_DISTANCE).all(axis=1)
        yield np.stack([left[same], right[same]], axis=1)


def _components(pairs: Sequence[Pairs], count: int) -> NDArray[np.int64]:
    edges = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    graph = coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), (count, count))
    components: NDArray[np.int64] = connected_components(graph, directed=False)[1]
    return components


def _spanning(pairs: Sequence[Pairs], count: int) -> Pairs:
    """Return the fewest pairs that make the same groups."""
    _, first, component = np.unique(
        _components(pairs, count), return_index=True, return_inverse=True
    )
    everyone = np.arange(count)
    links = np.stack([first[component], everyone], axis=1)
    edges: Pairs = links[links[:, 0] != links[:, 1]]
    return edges
