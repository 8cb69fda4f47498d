"""The pictures of the console in the documents: which pages, and what they depend on."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from jinja2 import Environment, meta

from vlserve.control.api.console import rendering

PROJECT = Path(__file__).parents[2]
PICTURES = PROJECT / "docs" / "pictures"
ROOM = Path(rendering.__file__).parent
STYLE = ROOM / "static" / "console.css"

PAGES: Mapping[str, tuple[str, str]] = {
    "now": ("now.html.j2", ""),
    "model": ("model.html.j2", "models/tagger"),
    "rollout": ("rollout.html.j2", "models/tagger/rollout"),
    "disagreements": ("pairs.html.j2", "models/covers/pairs"),
    "try": ("try.html.j2", "models/tagger/try"),
    "tags": ("tags.html.j2", "models/tagger/tags"),
    "version": ("version.html.j2", "models/tagger/versions/2"),
    "history": ("history.html.j2", "models/tagger/history"),
    "register": ("register.html.j2", "register"),
    "load-tests": ("load_tests.html.j2", "load-tests"),
    "batch-jobs": ("batch_jobs.html.j2", "batch-jobs"),
}
"""Picture -> the template of its page, and the page's path below /console/."""
_PARTS: Mapping[str, tuple[str, ...]] = {"try": ("tried.html.j2",)}
"""Picture -> templates of what scripts put into the page."""


def digest_of(picture: str) -> str:
    """Return the sha256 of all templates and styles that a picture shows."""
    templates = {PAGES[picture][0], *_PARTS.get(picture, ())}
    files = sorted({name for template in templates for name in _referenced(template)})
    total = hashlib.sha256(STYLE.read_bytes())
    for name in files:
        total.update((ROOM / "templates" / name).read_bytes())
    return total.hexdigest()


def _referenced(template: str) -> Iterator[str]:
    """Yield a template and those that it extends, includes or imports."""
    yield template
    source = (ROOM / "templates" / template).read_text(encoding="utf-8")
    for name in meta.find_referenced_templates(Environment(autoescape=True).parse(source)):
        assert name is not None, f"{template} names a template by a value"
        yield from _referenced(name)
