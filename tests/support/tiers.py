"""Which tier a test belongs to, by what it asks for.

``make unit`` runs tests/unit without what carries a marker of this module, or ``training``;
``make test`` runs all but ``long``; ``make test-long`` runs ``long``.
"""

from collections.abc import Iterable

MARKERS = {
    "archives": "export",
    "converter": "export",
    "exports": "export",
    "checkout": "server",
    "covers": "server",
    "control_api": "server",
    "envoy": "server",
    "stack": "server",
    "triton": "server",
}
"""Fixture -> marker of the tests that ask for it, themselves or through another fixture. A test
that exports or starts a server without one of these fixtures carries the marker itself."""


def markers_of(fixtures: Iterable[str]) -> set[str]:
    """Return the markers of a test that asks for these fixtures."""
    return {MARKERS[name] for name in fixtures if name in MARKERS}
