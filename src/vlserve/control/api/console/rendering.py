"""HTML of the console, from Jinja2 templates; whatever a request said is escaped."""

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vlserve.control.api.console.access import Visit
from vlserve.control.api.console.texts import LANGUAGES, texts_in

OWN_IMAGES = "'self'"
DRAWN_HERE = "'self' blob: data:"
"""Where the images of a page come from; the second: also from what its user chose, and from PNGs in
an answer."""


def security_headers(images: str = OWN_IMAGES) -> dict[str, str]:
    """Return the headers that keep scripts, styles and frames of others from a page."""
    return {
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
        f"img-src {images}; connect-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",  # none at all makes the Origin of forms "null"
        "Cache-Control": "no-store",
    }


_DIRECTIONS = {
    code: f"\\u{code:04x}"
    for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""Characters that turn the direction of what follows -> how they are shown."""


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("vlserve.control.api.console"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["figure"] = figure
    templates.filters["minute"] = lambda at: at[:16].replace("T", " ")
    return templates


def shown(value: object) -> object:
    """Return a text with its marks of direction as text: a label must not turn what stands beside
    it round. What our own macros made stays."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return value.translate(_DIRECTIONS)
    return value


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number for people: ``digits`` significant ones; a dash for None."""
    if value is None:
        return "–"
    if abs(value) > sys.float_info.max:  # an integer of JSON
        return "∞" if value > 0 else "-∞"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.2g}"
    return f"{value:.{digits}g}"


def render(template: str, language: str, values: Mapping[str, Any]) -> str:
    """Return the HTML of a template, in a language."""
    texts = texts_in(language)
    return (
        _templates()
        .get_template(template)
        .render(t=texts, language=language, languages=LANGUAGES, **values)
    )


def page(
    template: str,
    language: str,
    values: Mapping[str, Any],
    status: int = 200,
) -> HTMLResponse:
    """Return a page as an HTTP answer, with headers that keep other origins out. It does not say
    by whose key the browser was let in: perhaps it was not."""
    html = render(template, language, values)
    return HTMLResponse(html, status, headers=security_headers())


def visitors_page(
    visitor: Visit, template: str, values: Mapping[str, Any], images: str = OWN_IMAGES
) -> HTMLResponse:
    """Return a page for a browser that may read; it says by whose key that was let in."""
    html = render(template, visitor.language, {**values, "holder": visitor.session.holder})
    return HTMLResponse(html, headers=security_headers(images))
