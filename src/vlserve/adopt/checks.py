"""What keeps an archive from being adopted, and what its owner should know; read, never run."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vlserve.adopt.legacy_archive import LegacyArchive
from vlserve.adopt.model_config import SEQUENCES, STREAMS
from vlserve.adopt.packages import DISTRIBUTIONS, missing_modules, missing_requirements
from vlserve.adopt.source_code import Source, Sources, default_handler
from vlserve.adopt.weights import Kind, kind_of
from vlserve.errors import NotAdopted
from vlserve.runtime.legacy_handler import PIECES, entry_of

_ENVELOPES = ("body", "json", "kserve", "kservev2")
ONE_AT_A_TIME = ("kserve", "kservev2")
"""Envelopes that read a batch's first request alone."""


@dataclass(frozen=True)
class Allowed:
    """What the operator takes upon themselves. ``pickles``: sha256 of archives whose pickles may
    hold code. ``machine_code``: whether libraries are taken. ``whole``: whether pieces are
    joined."""

    pickles: frozenset[str] = frozenset()
    machine_code: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Checked:
    """``describes``: whether the handler's code has a describe_handle of its own."""

    warnings: tuple[str, ...]
    describes: bool


def check_runtime(archive: LegacyArchive, handler: str) -> None:
    """Refuse another language than Python."""
    runtime = str(archive.manifest.get("runtime", "python"))
    module = entry_of(handler).module
    is_class_of_library = module.startswith("lib") and ":" in handler
    held = (archive.folder / f"{module}.py").is_file()
    if runtime.upper().startswith("LSP") or (is_class_of_library and not held):
        raise NotAdopted(
            f"{archive.called} is C++ (runtime {runtime}): only Python handlers are adopted"
        )


def check_envelope(archive: LegacyArchive, envelope: str | None) -> None:
    """Refuse an envelope that TorchServe has not."""
    if envelope is not None and envelope not in _ENVELOPES:
        raise NotAdopted(
            f"{archive.called}: TorchServe has no envelope {envelope!r}; it has "
            f"{', '.join(_ENVELOPES)}"
        )


def check_weights(archive: LegacyArchive, permissions: Allowed) -> None:
    """Refuse files that run code when they are read, and code of one machine."""
    for file in archive.files():
        if file.suffix == ".py":
            continue
        kind, name = kind_of(file), archive.name_of(file)
        if kind is Kind.CODE_IN_PICKLE and archive.sha256 not in permissions.pickles:
            raise NotAdopted(
                f"{archive.called}: {name} holds code in a pickle: save a state dict, TorchScript "
                f"or ONNX; or name sha256 {archive.sha256} in trust.pickle"
            )
        if kind is Kind.MACHINE_CODE and not permissions.machine_code:
            raise NotAdopted(
                f"{archive.called}: {name} is machine code for the machine that made it: "
                "--trust-code takes it"
            )


def check_code(archive: LegacyArchive, handler: str, permissions: Allowed) -> Checked:
    """Find the handler by TorchServe's rules, and check what it imports."""
    own = Sources(archive.folder, archive.called)
    entry = entry_of(handler)
    where = entry.module if own.find(entry.module) else entry.default
    entry_source = own.find(where) or default_handler(where)
    if entry_source is None:
        raise NotAdopted(f"{archive.called} has no handler {handler}: it holds {_python(archive)}")
    model_file = str(archive.model.get("modelFile") or "").removesuffix(".py")
    sources = own.reached_from(where, *([model_file] if model_file else []))
    _check_entry(archive, entry_source, entry.function)
    _check_ways(archive, sources, permissions)
    _check_packages(archive, sources, own)
    if model_file:
        _check_model_file(archive, entry_source, own.find(model_file))
    describes = any(
        any(source.functions("describe_handle"))
        for source in sources
        if not _is_torchserves(source)
    )
    return Checked(tuple(_warnings(archive, sources)), describes)


def _check_entry(archive: LegacyArchive, handler: Source, function: str) -> None:
    if any(isinstance(each, ast.AsyncFunctionDef) for each in handler.functions(function)):
        raise NotAdopted(f"{archive.called} {STREAMS} (async {function} in {handler.called})")
    if handler.binds(function):
        return
    classes = sorted(handler.classes)
    if len(classes) != 1:
        raise NotAdopted(
            f"{handler.called} defines {' and '.join(classes) or 'no class'}: TorchServe wants one "
            f"class, or a function {function}"
        )
    only = handler.classes[classes[0]]
    bases = [base for base in only.bases if getattr(base, "id", "") != "object"]
    if "handle" not in handler.methods(only.name) and not bases:
        raise NotAdopted(f"{handler.called}: {only.name} has no method handle")


def _check_ways(archive: LegacyArchive, sources: Iterable[Source], permissions: Allowed) -> None:
    """Refuse how handlers answer that vlserve does not do."""
    for source in sources:
        if _is_torchserves(source):
            if source.module in ("vllm_handler", "trt_llm_handler"):
                raise NotAdopted(f"{archive.called} {STREAMS} ({source.module})")
            continue
        names = source.names_used()
        if "get_sequence_id" in names:
            raise NotAdopted(f"{archive.called} {SEQUENCES} ({source.called})")
        if PIECES in names and not permissions.whole:
            raise NotAdopted(
                f"{archive.called} answers in pieces ({source.called}): `--whole` joins them into "
                "one answer"
            )


def _check_packages(archive: LegacyArchive, sources: Iterable[Source], own: Sources) -> None:
    modules = missing_modules(sources, own)
    packages = [DISTRIBUTIONS.get(module, module) for module in modules]
    file_name = str(archive.model.get("requirementsFile") or "requirements.txt")
    requirements = archive.folder / file_name
    lines = missing_requirements(requirements) if requirements.is_file() else []
    needs = sorted({*packages, *lines})
    if needs:
        raise NotAdopted(
            f"{archive.called} needs {', '.join(needs)}, which "
            f"{'are' if len(needs) > 1 else 'is'} not installed: pip install "
            f"{' '.join(repr(need) if set(need) & set('<>=~;[ ') else need for need in needs)}, "
            "then again"
        )


def _check_model_file(archive: LegacyArchive, handler: Source, model: Source | None) -> None:
    """Hold BaseHandler's rule where it is BaseHandler that reads the model."""
    if model is None:
        raise NotAdopted(f"{archive.called} names a model file that it does not hold")
    reads = {"initialize", "_load_pickled_model", "handle"}
    own = {method for name in handler.classes for method in handler.methods(name)}
    if len(model.classes) != 1 and not own & reads:
        names = " and ".join(sorted(model.classes)) or "no class"
        raise NotAdopted(f"{model.called} defines {names}: TorchServe wants one class")


def _warnings(archive: LegacyArchive, sources: Iterable[Source]) -> Iterator[str]:
    for source in sources:
        if _is_torchserves(source):
            continue
        for place in source.paths_outside():
            yield (
                f"{source.called} opens {place.words} (line {place.line}), which is not in the "
                "archive"
            )
        for place in source.downloads():
            if not (archive.folder / place.words).exists():
                yield (
                    f"{source.called} fetches {place.words} (line {place.line}), which is not in "
                    "the archive: workers may have no network"
                )


def _is_torchserves(source: Source) -> bool:
    return source.called.startswith("TorchServe's")


def _python(archive: LegacyArchive) -> str:
    names = [archive.name_of(file) for file in archive.files() if file.suffix == ".py"]
    return ", ".join(names[:10]) or "no Python files"
