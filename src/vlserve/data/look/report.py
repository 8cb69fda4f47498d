"""The look at data files as one JSON object, and the files beside it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlserve.data.data_files import refuse_own_output, write_object, written_whole
from vlserve.data.look.label_issues import Issues, find_issues
from vlserve.data.look.near_duplicates import DISTANCE, Groups, find_groups
from vlserve.data.look.survey import Example, Survey, TextLengths, lines_at, survey_files
from vlserve.extras import require_extras

PAGE, FACTS = "look.html", "look.json"
UNREADABLE, DUPLICATES, ISSUES = "unreadable.jsonl", "near-duplicates.jsonl", "label-issues.jsonl"
SCHEMA = 1
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_TOP_SIZES = 10


@dataclass(frozen=True)
class Member:
    """An image of a group that looks alike."""

    file: str
    line: int
    id: str
    image: Path
    label: tuple[str, ...]


@dataclass(frozen=True)
class Look:
    """Everything that the page shows. ``facts``: look.json."""

    facts: Mapping[str, Any]
    survey: Survey
    groups: Sequence[Sequence[Member]]
    issues: Issues | None


def look_at(
    paths: Sequence[Path],
    out: Path,
    *,
    lengths: TextLengths,
    unit: str,
    max_length: int | None,
    predictions: Path | None,
    workers: int,
    show: Callable[[str], None] = lambda line: None,
) -> Look:
    """Read the files, and write what is in them into OUT, but for the page.

    Raises:
        DataError: A file cannot be used.
        ExtraMissing: There are predictions, and cleanlab is not installed.
    """
    if predictions is not None:
        require_extras("labels")
    for name in (UNREADABLE, DUPLICATES, ISSUES, FACTS):
        refuse_own_output(out / name, paths)
    with written_whole(out / UNREADABLE) as unreadable:
        survey = survey_files(paths, lengths, workers, unreadable, show)
    for file in survey.files:
        file.left_out.refuse(file.path, file.used, strict=False)
    show("comparing images")
    duplicates = _groups(survey)
    groups = _members(survey, duplicates)
    with written_whole(out / DUPLICATES) as lines:
        for group in groups:
            write_object(lines, {"images": [_member(member) for member in group]})
    issues = None if predictions is None else find_issues(paths, predictions)
    if issues is not None:
        with written_whole(out / ISSUES) as lines:
            for issue in issues.issues:
                write_object(lines, asdict(issue))
    facts = {
        "schema": SCHEMA,
        "files": {str(file.path): _file(file) for file in survey.files},
        "shared_ids": survey.shared_ids,
        "text": _text(survey.text_lengths, unit, max_length),
        "images": _images(survey),
        "near_duplicates": _duplicates(groups, duplicates.complete),
        "label_issues": None
        if issues is None
        else {"compared": issues.compared, "issues": len(issues.issues)},
    }
    with written_whole(out / FACTS) as file_of_facts:
        write_object(file_of_facts, facts)
    return Look(facts, survey, groups, issues)


def example_of(member: Member) -> Example:
    """Return a member as the page shows it."""
    return Example(f"{member.file}:{member.line} {member.id}", member.image, "")


def _groups(survey: Survey) -> Groups:
    images = survey.images
    hashes = np.frombuffer(images.hashes, np.uint64)
    colours = np.frombuffer(images.colours, np.uint8).reshape(-1, 3)
    return find_groups(hashes, colours)


def _members(survey: Survey, groups: Groups) -> Sequence[Sequence[Member]]:
    images = survey.images
    lines_of_file: dict[int, set[int]] = {}
    for group in groups.members:
        for place in group:
            lines_of_file.setdefault(images.files[place], set()).add(images.lines[place])
    members: dict[tuple[int, int], Member] = {}
    for file, lines in lines_of_file.items():
        path = survey.files[file].path
        for line, fields in lines_at(path, lines):
            label = fields.get("label")
            labels = tuple(map(str, label if isinstance(label, list) else [label]))
            image = path.parent / str(fields["img"])
            members[file, line] = Member(
                path.name, line, str(fields.get("id", line)), image, labels
            )
    return [
        [members[images.files[place], images.lines[place]] for place in group]
        for group in groups.members
    ]


def _member(member: Member) -> Mapping[str, Any]:
    about = {"file": member.file, "line": member.line, "id": member.id}
    return about | {"image": str(member.image), "label": list(member.label)}


def _file(file: Any) -> Mapping[str, Any]:
    return {
        "lines": file.used,
        "left_out": file.left_out.count,
        "repeated_ids": file.repeated_ids,
        "unlabelled": file.unlabelled,
        "without_text": file.without_text,
        "without_image": file.without_image,
        "labels": dict(file.labels.most_common()),
    }


def _text(lengths: Counter[int], unit: str, max_length: int | None) -> Mapping[str, Any]:
    total = lengths.total()
    cut_share = None
    if max_length is not None and total:
        cut_share = sum(count for length, count in lengths.items() if length > max_length) / total
    return {
        "texts": total,
        "empty": lengths[0],
        "unit": unit,
        **{name: quantile(lengths, share) for name, share in _QUANTILES.items()},
        "max": max(lengths, default=None),
        "max_length": max_length,
        "cut_share": cut_share,
    }


def quantile(counts: Counter[int], share: float) -> int | None:
    """Return the smallest value that is not exceeded by ``share`` of what was counted; None where
    nothing was."""
    remainder = share * counts.total()
    for value in sorted(counts):
        remainder -= counts[value]
        if remainder <= 0:
            return value
    return None


def _images(survey: Survey) -> Mapping[str, Any]:
    images = survey.images
    sides: dict[str, Counter[int]] = {"width": Counter(), "height": Counter()}
    for (width, height), count in images.sizes.items():
        sides["width"][width] += count
        sides["height"][height] += count
    return {
        "readable": len(images.hashes),
        "unreadable": images.unreadable.count,
        "formats": dict(images.formats.most_common()),
        **{
            name: {
                "min": min(counts, default=None),
                "p50": quantile(counts, 0.5),
                "max": max(counts, default=None),
            }
            for name, counts in sides.items()
        },
        "sizes": [[*size, count] for size, count in images.sizes.most_common(_TOP_SIZES)],
    }


def _duplicates(groups: Sequence[Sequence[Member]], complete: bool) -> Mapping[str, Any]:
    across = [group for group in groups if len({member.file for member in group}) > 1]
    unlike = [group for group in groups if len({member.label for member in group}) > 1]
    return {
        "distance": DISTANCE,
        "groups": len(groups),
        "images": sum(map(len, groups)),
        "groups_across_files": len(across),
        "images_across_files": sum(map(len, across)),
        "groups_with_different_labels": len(unlike),
        "complete": complete,
    }
