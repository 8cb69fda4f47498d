"""What the nodes of a cluster get of a job, and the packages that they must have themselves."""

import ast
import io
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import vlserve_worker
from vlserve.batch.job import JobRecord
from vlserve.batch.sources import Kind
from vlserve.runtime.manifest import MANIFEST, Manifest, read_manifest
from vlserve_worker.batch_node import NodeJob
from vlserve_worker.batch_process import Launch
from vlserve_worker.storage import AnyPath, ObjectPath

ENGINES = {"onnx": "onnxruntime", "torchscript": "torch", "echo": None}
"""Imported when a graph of this format is opened."""


@dataclass(frozen=True)
class Shipment:
    """What nodes get. ``program``: the package of workers as a zip file; ``packages``: that the
    archive's code imports; ``sources``: input files and folders."""

    job: NodeJob
    archive: Path
    program: bytes
    packages: Sequence[str]
    sources: Sequence[AnyPath]


def pack_shipment(record: JobRecord, launch: Launch) -> Shipment:
    """Return what nodes get of a job; ``launch`` says where its archive is unpacked."""
    manifest = read_manifest((launch.folder / MANIFEST).read_bytes())
    sources = [source.path for source in record.sources]
    has_tables = (
        record.options.format == "parquet"
        or any(source.kind is Kind.PARQUET for source in record.sources)
        or any(isinstance(path, ObjectPath) for path in sources)
        or str(launch.options["out"]).startswith("s3://")
    )
    return Shipment(
        NodeJob(record.sha256, str(launch.options["out"]), launch.options, launch.threads),
        Path(record.archive),
        packed_program(),
        imported_packages(launch.folder, manifest, has_tables=has_tables),
        sources,
    )


def packed_program() -> bytes:
    """Return the package of workers as a zip file."""
    folder, buffer = Path(vlserve_worker.__file__).parent, io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as members:
        for file in sorted(folder.glob("*.py")):
            members.writestr(f"{folder.name}/{file.name}", file.read_bytes())
    return buffer.getvalue()


def imported_packages(archive: Path, manifest: Manifest, *, has_tables: bool) -> Sequence[str]:
    """Return the names of packages that are imported before the first row is answered.

    Args:
        archive: The folder of the unpacked archive.
        has_tables: Input or output is Parquet, or lies in an object storage.
    """
    program = Path(vlserve_worker.__file__).parent
    open_files = [
        archive / "vlserve" / "runtime" / "folder.py",
        archive / "handlers" / f"{manifest.task}.py",
        program / "batch.py",
    ]
    seen: set[Path] = set()
    packages = {engine for g in manifest.graphs.values() if (engine := ENGINES.get(g.format))}
    packages |= {"pyarrow"} if has_tables else set()
    while open_files:
        file = open_files.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in _imported(file):
            own = _own_file(name, archive, program)
            if own is not None:
                open_files.append(own)
            elif name.partition(".")[0] not in {"vlserve", "vlserve_worker"}:
                packages.add(name.partition(".")[0])
    return sorted(packages - sys.stdlib_module_names)


def _imported(file: Path) -> Iterator[str]:
    """Yield names of modules that a file imports when it is loaded; not those that it may do
    without."""
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _own_file(name: str, archive: Path, program: Path) -> Path | None:
    relative = Path(*name.split("."))
    for root in (archive, program.parent):
        if root == program.parent and not name.startswith("vlserve_worker"):
            continue
        for file in (root / relative.with_suffix(".py"), root / relative / "__init__.py"):
            if file.is_file():
                return file
    return None
