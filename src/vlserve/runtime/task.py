"""What one file in handlers/ must define: how a task's requests become arrays and arrays answers.

A handler file defines exactly one subclass of `Task`. It is loaded by path, from the archive's own
folder when served, so that a task is added by one file and nothing here knows a task by name.
"""

import importlib.util
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel

from vlserve.runtime.errors import ArchiveUnreadable
from vlserve.runtime.inputs import Inputs, fields_of, inputs_of
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.types import Answer, Arrays, Backend, Sample, stack

Fields = TypeVar("Fields", bound=BaseModel)


@dataclass(frozen=True)
class Surroundings:
    """What a worker tells its task.

    ``batch_size``: most requests in a batch. ``metrics``: TorchServe's; None on another engine.
    ``gpu_id``: None where the worker has no GPU.
    """

    batch_size: int = 1
    metrics: Any = None
    gpu_id: int | None = None


class Task(ABC, Generic[Fields]):
    """One task over one version's graphs. Instances are shared by threads and keep no requests.

    ``fields`` is the task's request schema; the pipeline parses each request into it once, and
    gives the result to preprocess and postprocess alike. ``answer`` is the schema of the task's
    answers. ``pictures`` names the parts of an answer that draw what others say in numbers: probes
    leave them out, because a rounding changes their bytes.

    The steps preprocess, tokenise and collate are the reader's that goes with ``fields`` (see
    `vlserve.runtime.inputs`). A task whose requests are others overrides them.
    """

    fields: type[BaseModel]
    answer: ClassVar[type[BaseModel]] = BaseModel
    pictures: ClassVar[frozenset[str]] = frozenset()
    warms_up: ClassVar[bool] = True
    """Whether probes are answered before a worker takes requests."""

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        """Open the task of one unpacked archive.

        Args:
            root: the archive's folder.
            backends: the loaded graphs by their name in the manifest.

        Raises:
            ManifestInvalid: the manifest lacks what the task needs.
        """
        self.manifest = manifest
        self.root = root
        self.backends = backends
        self.inputs = self.open_inputs()
        self.fields = fields_of(self.fields, manifest)

    def start(self, around: Surroundings) -> None:
        """Begin to answer, in the process that will. Nothing else runs code that a user brought
        along."""

    def open_inputs(self) -> Inputs | None:
        """Return the reader of this task's requests, by their schema; None: it has none."""
        return inputs_of(self.fields, self.manifest, self.root, self.backends)

    def preprocess(self, fields: Fields) -> Sample:
        """Return one request's arrays, without the batch axis. RequestError when it cannot be
        answered."""
        if self.inputs is None:
            raise NotImplementedError(f"{type(self).__name__} has no inputs and no preprocess")
        return self.inputs.sample(fields)

    def tokenise(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Return a batch's samples with their texts as ids, all in one call of the tokenizer."""
        return self.inputs.tokenise(samples) if self.inputs else samples

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        """Return the arrays of one batch; samples that differ in shape are padded here."""
        return self.inputs.collate(samples) if self.inputs else stack(samples)

    def infer(self, arrays: Arrays) -> Arrays:
        """Run the batch. A task of several graphs (encoder and decoder, …) loops here."""
        return self.run("model", arrays)

    def run(self, graph: str, arrays: Arrays) -> Arrays:
        """Run one graph on those of ``arrays`` that it takes."""
        names = [tensor.name for tensor in self.manifest.graphs[graph].inputs]
        return self.backends[graph].run({name: arrays[name] for name in names if name in arrays})

    @abstractmethod
    def postprocess(self, outputs: Arrays, index: int, fields: Fields) -> Answer:
        """Return the answer of item ``index`` of a batch, JSON-ready."""

    @classmethod
    def examples(cls, drawn: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return requests made of ``drawn`` values of every field that the model takes, for
        probes."""
        return [{name: value for name, value in drawn.items() if name in cls.fields.model_fields}]

    def scores(self, answer: Answer) -> Mapping[str, float]:
        """Return the labels that an answer names with their scores, best first: two versions are
        compared by them. Empty for a task whose answers have no labels."""
        return {}


def difference(expected: Any, got: Any, where: str = "answer", atol: float = 1e-3) -> str | None:
    """Return the first place where two JSON values differ, numbers by more than ``atol``; None
    where there is none."""
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        for key, value in expected.items():
            if key not in got:
                return f"{where} has no {key}"
            if place := difference(value, got[key], f"{where}.{key}", atol):
                return place
        return None
    if isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got):
            return f"{where} has {len(got)} entries, expected {len(expected)}"
        for index, pair in enumerate(zip(expected, got, strict=True)):
            if place := difference(*pair, f"{where}[{index}]", atol):
                return place
        return None
    if _number(expected) and _number(got):
        same = math.isclose(expected, got, rel_tol=0, abs_tol=atol)
    else:
        same = type(expected) is type(got) and expected == got
    return None if same else f"{where} is {got!r}, expected {expected!r}"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def load_task(file: Path) -> type[Task[Any]]:
    """Return the one Task subclass that a handler file defines; those that it imports do not count.

    Raises ArchiveUnreadable for a file that is missing, fails, or defines none or several.
    """
    name = f"vlserve_task_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ArchiveUnreadable(f"no task at {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks the schema's module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ArchiveUnreadable(f"{file} cannot be loaded: {error!r}") from error
    tasks = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == name
    ]
    if len(tasks) != 1:
        raise ArchiveUnreadable(f"{file} defines {len(tasks)} tasks; it must define exactly one")
    return tasks[0]
