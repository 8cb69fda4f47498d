"""One evaluation: a file of items, and an archive that is asked about them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlserve.batch.offline import answer_offline
from vlserve.processor import usable_cores
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.types import Answer
from vlserve.training.evaluators.items import AnyItem, Look, TaskFile, read_task_file
from vlserve.training.json_lines import BadLine, refuse_bad_lines

OnProgress = Callable[[str], None]
Fields = dict[str, Any]
"""Of one request, as vlserve.batch.offline takes them."""


@dataclass(frozen=True)
class Refused:
    """Why a request has no answer."""

    reason: str


@dataclass(frozen=True)
class Result:
    """``figures``: JSON-ready, by name; ``items`` says of how many. ``bad_lines`` were left out."""

    figures: Mapping[str, Any]
    bad_lines: tuple[BadLine, ...] = field(default=())


@dataclass(frozen=True)
class Job:
    """``rerank``: how many candidates of a query a matching model looks at again; 0: none."""

    archive: Path
    manifest: Manifest
    data: Path
    batch_size: int = 8
    strict: bool = False
    rerank: int = 16
    progress: OnProgress | None = None

    def of(self, archive: Path) -> "Job":
        """Return the same about another archive of the model."""
        return replace(self, archive=archive)

    def read(self, schema: type[AnyItem]) -> TaskFile[AnyItem]:
        """Read the items. DataError: no usable line, or any bad one if ``strict``."""
        file = read_task_file(self.data, schema)
        refuse_bad_lines((file,), strict=self.strict)
        return file

    def look(self, look: Look, suffix: str = "") -> Fields:
        """Return what a request says of an image; features where there are and the model reads
        them. Names of the fields end in ``suffix``."""
        regions = self.manifest.regions
        if regions is None or look.features is None:
            return {} if look.img is None else {f"image{suffix}_path": self._path(look.img)}
        fields: Fields = {f"features{suffix}_path": self._path(look.features)}
        if regions.boxes and isinstance(look.boxes, str):
            fields[f"boxes{suffix}_path"] = self._path(look.boxes)
        elif regions.boxes and look.boxes is not None:
            fields[f"boxes{suffix}"] = [list(corners) for corners in look.boxes]
        return fields

    def ask(self, requests: Sequence[Fields], of_what: str = "items") -> list[Answer | Refused]:
        """Return one answer a request, in order, by the archive's own code in a process of its own.
        ArchiveError where that fails."""
        entries = ({"id": at, "fields": fields} for at, fields in enumerate(requests))
        answers: list[Answer | Refused] = []
        cores = usable_cores()
        lines = answer_offline(
            self.archive, entries, self.batch_size, threads=cores, show=self.progress
        )
        for line in lines:
            if "error" in line:
                answers.append(Refused(f"{line['error']['code']}: {line['error']['message']}"))
            else:
                answers.append(line["answer"])
        if self.progress:
            self.progress(f"answered {len(answers)} of {len(requests)} {of_what}")
        return answers

    def answered(
        self, file: TaskFile[AnyItem], requests: Sequence[Fields]
    ) -> tuple[TaskFile[AnyItem], list[Answer]]:
        """Ask one request an item; return the items that have an answer, and those. Raises as
        `read`."""
        answers = self.ask(requests)
        reasons = {
            line: answer.reason
            for line, answer in zip(file.by_line, answers, strict=True)
            if isinstance(answer, Refused)
        }
        usable = self.leave_out(file, reasons)
        return usable, [answer for answer in answers if not isinstance(answer, Refused)]

    def leave_out(self, file: TaskFile[AnyItem], reasons: Mapping[int, str]) -> TaskFile[AnyItem]:
        """Leave out lines; ``reasons`` by line number. Raises as `read`."""
        usable = file.without(reasons)
        refuse_bad_lines((usable,), strict=self.strict)
        return usable

    def file_of(self, name: str) -> Path:
        """Return a file that an item names."""
        return self.data.parent / name

    def _path(self, name: str) -> str:
        return str(self.file_of(name).resolve())
