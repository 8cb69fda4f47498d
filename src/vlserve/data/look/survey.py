"""One pass over data files: what is counted, and what is kept of each image for the comparison."""

from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vlserve.data.data_files import LeftOut, labels_of, read_objects, write_object
from vlserve.data.fields import FIELDS
from vlserve.data.look.images import ImageFacts, Unreadable, image_facts
from vlserve.runtime.errors import RequestError
from vlserve.runtime.text import read_text
from vlserve.training.json_lines import as_text

MOST_LABELS = 10_000
"""Different labels that are counted by themselves; further ones count as OTHERS."""
MOST_SIZES = 10_000
OTHERS = "…"
EXAMPLES, EXAMPLE_LABELS = 4, 50
_TEXTS_AT_ONCE = 512
_AHEAD = 8
_SHOW_EVERY = 20_000

TextLengths = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True)
class Example:
    """An item as the page shows it."""

    id: str
    image: Path
    text: str


@dataclass
class FileSurvey:
    """What one file holds. ``repeated_ids``: lines whose id an earlier line of the file has."""

    path: Path
    used: int = 0
    unlabelled: int = 0
    without_text: int = 0
    without_image: int = 0
    repeated_ids: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    left_out: LeftOut = field(default_factory=LeftOut)


@dataclass
class Images:
    """Of every readable image: its hash, its mean colour, and the file and line that name it."""

    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    colours: bytearray = field(default_factory=bytearray)
    files: "array[int]" = field(default_factory=lambda: array("H"))
    lines: "array[int]" = field(default_factory=lambda: array("L"))
    formats: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    unreadable: LeftOut = field(default_factory=LeftOut)

    def add(self, file: int, line: int, facts: ImageFacts) -> None:
        self.hashes.append(facts.hash)
        self.colours += bytes(facts.colour)
        self.files.append(file)
        self.lines.append(line)
        self.formats[facts.format] += 1
        size = (facts.width, facts.height)
        if size not in self.sizes and len(self.sizes) >= MOST_SIZES:
            size = (round(size[0], -2), round(size[1], -2))
        self.sizes[size] += 1


@dataclass
class Survey:
    """What all files hold. ``shared_ids``: ids that more than one file has."""

    files: list[FileSurvey]
    text_lengths: Counter[int] = field(default_factory=Counter)
    images: Images = field(default_factory=Images)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    shared_ids: int = 0


def survey_files(
    paths: Sequence[Path],
    lengths: TextLengths,
    workers: int,
    unreadable: IO[bytes],
    show: Callable[[str], None] = lambda line: None,
) -> Survey:
    """Read every line and every image once.

    Args:
        paths: JSON lines with ``id``, ``img``, ``text``, ``label``, each where there is one.
        lengths: Texts -> how long each is.
        workers: Images decoded at once.
        unreadable: Takes a line for each image that serving would refuse.
        show: Takes lines of progress.

    Raises:
        DataError: A file cannot be read.
    """
    survey = Survey([FileSurvey(path) for path in paths])
    with ThreadPoolExecutor(workers) as pool:
        _Pass(survey, lengths, pool, _AHEAD * workers, unreadable, show).run()
    return survey


class _Pass:
    def __init__(
        self,
        survey: Survey,
        lengths: TextLengths,
        pool: ThreadPoolExecutor,
        ahead: int,
        unreadable: IO[bytes],
        show: Callable[[str], None],
    ) -> None:
        self._survey, self._lengths, self._show = survey, lengths, show
        self._pool, self._ahead, self._unreadable = pool, ahead, unreadable
        self._texts: list[str] = []
        self._begun: deque[tuple[int, int, Example, Future[ImageFacts]]] = deque()
        self._ids: dict[int, int] = {}
        """Hash of an id -> the file that had it last: an id itself would take six times as much."""

    def run(self) -> None:
        for number, file in enumerate(self._survey.files):
            for line, _, fields in read_objects(file.path, file.left_out):
                if not fields.keys() & set(FIELDS):
                    file.left_out.add(file.path, line, f"it has none of {', '.join(FIELDS)}")
                    continue
                self._take(number, file, line, fields)
                if file.used % _SHOW_EVERY == 0:
                    self._show(f"{file.path.name}: {file.used} lines")
        while self._begun:
            self._finish_image()
        self._measure_texts()

    def _take(self, number: int, file: FileSurvey, line: int, fields: Mapping[str, Any]) -> None:
        file.used += 1
        self._note_id(number, file, fields.get("id"))
        labels = labels_of(fields)
        file.unlabelled += not labels
        for label in labels:
            listed = label in file.labels or len(file.labels) < MOST_LABELS
            file.labels[label if listed else OTHERS] += 1
        text = self._text(file, fields.get("text"))
        image = fields.get("img")
        if not isinstance(image, str) or not image:
            file.without_image += 1
            return
        example = Example(str(fields.get("id", line)), file.path.parent / image, text)
        for label in labels:
            if label in self._survey.examples or len(self._survey.examples) < EXAMPLE_LABELS:
                examples = self._survey.examples.setdefault(label, [])
                if len(examples) < EXAMPLES:
                    examples.append(example)
        self._begun.append((number, line, example, self._pool.submit(image_facts, example.image)))
        if len(self._begun) >= self._ahead:
            self._finish_image()

    def _note_id(self, number: int, file: FileSurvey, value: object) -> None:
        row_id = as_text(value)
        if not isinstance(row_id, str):
            return
        digest = hash(row_id)
        before = self._ids.get(digest)
        file.repeated_ids += before == number
        self._survey.shared_ids += before is not None and before != number
        self._ids[digest] = number

    def _text(self, file: FileSurvey, value: object) -> str:
        try:
            text = read_text(value)
        except (RequestError, ValueError):
            file.without_text += 1
            return ""
        self._texts.append(text)
        if len(self._texts) == _TEXTS_AT_ONCE:
            self._measure_texts()
        return text

    def _measure_texts(self) -> None:
        self._survey.text_lengths.update(self._lengths(self._texts))
        self._texts.clear()

    def _finish_image(self) -> None:
        file, line, example, facts = self._begun.popleft()
        try:
            self._survey.images.add(file, line, facts.result())
        except Unreadable as error:
            path = self._survey.files[file].path
            self._survey.images.unreadable.add(path, line, str(error))
            about = {"file": str(path), "line": line, "id": example.id}
            write_object(self._unreadable, about | {"image": str(example.image), "why": str(error)})


def lines_at(path: Path, numbers: set[int]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the objects on some lines of a file that was surveyed."""
    for line, _, fields in read_objects(path, LeftOut()):
        if line in numbers:
            yield line, fields
