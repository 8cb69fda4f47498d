"""The look at data files as an HTML page, which needs no other file."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vlserve.data.look.augmented import augmented
from vlserve.data.look.report import Look, Member, example_of, quantile
from vlserve.data.look.survey import Example

THUMBNAIL = 112
_LABELS, _EXAMPLE_LABELS = 40, 12
_GROUPS, _OF_GROUP, _ISSUES = 16, 5, 24
_BINS = 40


def render_page(look: Look, augmentation: str | None = None) -> str:
    """Return the page; with a sheet of items that an ``augmentation`` of training has changed,
    where one is named. Raises what `augmented` does."""
    templates = Environment(
        loader=PackageLoader("vlserve.data.look"), autoescape=True, undefined=StrictUndefined
    )
    labels = sum((file.labels for file in look.survey.files), Counter[str]())
    across = sorted(look.groups, key=lambda group: len({m.file for m in group}) < 2)
    return templates.get_template("look.html.j2").render(
        facts=look.facts,
        labels=[
            (label, count, [file.labels[label] for file in look.survey.files])
            for label, count in labels.most_common(_LABELS)
        ],
        files=[file.path.name for file in look.survey.files],
        more_labels=max(0, len(labels) - _LABELS),
        most=max(labels.values(), default=1),
        bad=[kind for file in look.survey.files for kind in file.left_out.kinds()],
        unreadable=look.survey.images.unreadable.kinds(),
        lengths=_plot_lengths(look),
        sizes=_plot_sizes(look),
        examples=[
            (label, [_picture(item, item.text) for item in look.survey.examples[label]])
            for label, _ in labels.most_common()
            if label in look.survey.examples
        ][:_EXAMPLE_LABELS],
        groups=[_shown(group) for group in across[:_GROUPS]],
        augmentation=augmentation,
        sheet=_sheet(look, augmentation) if augmentation else [],
        issues=[] if look.issues is None else look.issues.issues[:_ISSUES],
    )


def _sheet(look: Look, augmentation: str) -> list[list[dict[str, str]]]:
    """Return the pictures of each row: the item, and what became of it."""
    every = [example for own in look.survey.examples.values() for example in own]
    return [
        [
            _picture(row.example, row.example.text),
            *(
                {"source": _as_uri(image), "title": row.example.id, "caption": text[:80]}
                for image, text in row.changed
            ),
        ]
        for row in augmented(every, augmentation)
    ]


def _shown(group: Sequence[Member]) -> Any:
    pictures = [
        _picture(example_of(member), f"{member.file}: {', '.join(member.label)}")
        for member in group[:_OF_GROUP]
    ]
    return {"pictures": pictures, "more": max(0, len(group) - _OF_GROUP)}


def _picture(example: Example, caption: str) -> dict[str, str]:
    return {"source": thumbnail(example.image), "title": example.id, "caption": caption[:80]}


def thumbnail(path: Path) -> str:
    """Return a small copy of an image as a data URI; empty where it cannot be read."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    return _as_uri(small)


def _as_uri(image: Image.Image) -> str:
    """Return a small copy of an RGB image."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _plot_lengths(look: Look) -> str:
    counts, text = look.survey.text_lengths, look.facts["text"]
    if not counts:
        return ""
    figure, axes = _axes(f"length in {text['unit']}", "texts")
    end = max(quantile(counts, 0.999) or 1, text["max_length"] or 1, 1)
    axes.hist(list(counts), bins=_BINS, range=(0, end), weights=list(counts.values()))
    if text["max_length"] is not None:
        axes.axvline(text["max_length"], color="black", linestyle="--")
    return _as_image(figure)


def _plot_sizes(look: Look) -> str:
    sizes = look.survey.images.sizes
    if not sizes:
        return ""
    figure, axes = _axes("width in pixels", "height in pixels")
    most = max(sizes.values())
    axes.scatter(
        [width for width, _ in sizes],
        [height for _, height in sizes],
        s=[10 + 200 * count / most for count in sizes.values()],
        alpha=0.4,
    )
    return _as_image(figure)


def _axes(across: str, up: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return figure, axes


def _as_image(figure: Any) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data)  # type: ignore[no-untyped-call]
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
