"""All parts of a job as one file."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vlserve.errors import BatchError
from vlserve_worker.batch_parts import parts_in
from vlserve_worker.storage import AnyPath, parquet_file


def join_parts(out: AnyPath, format: str, file: Path) -> None:
    """Write the parts in ``out`` one after the other into ``file``, which appears whole.

    Raises:
        BatchError: It cannot be written, or is one of the parts.
    """
    parts = list(parts_in(out, format).values())
    if file.parent.resolve() == out.resolve() and file.name in {part.name for part in parts}:
        raise BatchError(f"{file} is a part of the job: choose another --joined")
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if format == "parquet":
            _join_parquet(parts, partial)
        else:
            with partial.open("wb") as target:
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, target)
        partial.replace(file)
    except OSError as error:
        raise BatchError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _join_parquet(parts: Sequence[AnyPath], file: Path) -> None:
    from pyarrow.parquet import ParquetWriter

    if not parts:
        raise BatchError(f"there are no parts to join into {file.name}")
    with parquet_file(parts[0]) as first:
        schema = first.schema_arrow
    with ParquetWriter(file, schema) as target:
        for part in parts:
            with parquet_file(part) as source:
                for batch in source.iter_batches():
                    target.write_batch(batch)
