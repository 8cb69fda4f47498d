"""HTML of the console, from Jinja2 templates; whatever a request said is escaped."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from vlserve.control.api.console.texts import LANGUAGES, texts_in

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # none at all makes the Origin of forms "null"
    "Cache-Control": "no-store",
}


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("vlserve.control.api.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["figure"] = figure
    templates.filters["minute"] = lambda at: at[:16].replace("T", " ")
    return templates


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number for people: ``digits`` significant ones; a dash for None."""
    if value is None:
        return "–"
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
    template: str, language: str, values: Mapping[str, Any], status: int = 200
) -> HTMLResponse:
    """Return a page as an HTTP answer, with headers that keep other origins out."""
    return HTMLResponse(render(template, language, values), status, headers=SECURITY_HEADERS)
