"""A folder with an Echo tagger and covers, and a way to run jobs over files of rows."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.batch_rows import COVERS, CRASH
from vlserve.batch.job import Options
from vlserve.batch.locks import Shard
from vlserve.batch.run import Crewing, run_batch
from vlserve.exporter.echo import VOCABULARY, pack_echo
from vlserve.runtime.archive import unpack_archive

Run = Callable[..., Mapping[str, Any]]


@pytest.fixture(scope="module")
def covers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tagger-1.mar and cover0.jpg, cover1.jpg, …"""
    folder = tmp_path_factory.mktemp("covers")
    pack_echo(folder, "tagger", 1, crash_on_id=VOCABULARY[CRASH])
    for number in range(COVERS):
        colour = (number * 30, 255 - number * 30, 90)
        Image.new("RGB", (48, 32), colour).save(folder / f"cover{number}.jpg")
    return folder


@pytest.fixture
def run(covers: Path, tmp_path: Path) -> Run:
    """Run a job over files, into tmp_path/out. One worker, unless several shall work at once."""

    def run_job(*inputs: Path, retry_errors: bool = False, **options: Any) -> Mapping[str, Any]:
        crewing = Crewing(
            workers=options.pop("workers", 1),
            item_timeout_s=options.pop("item_timeout_s", 30.0),
            shard=Shard.parse(options.pop("shard", "0/1")),
        )
        archive = options.pop("archive", covers / "tagger-1.mar")
        out = options.pop("out", tmp_path / "out")
        price = options.pop("core_hour_price", None)
        patterns = [str(path) for path in inputs]
        return run_batch(
            archive,
            patterns,
            out,
            Options(**options),
            crewing,
            retry_errors=retry_errors,
            core_hour_price=price,
        )

    return run_job


@pytest.fixture(scope="module")
def echo_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_echo(tmp_path_factory.mktemp("echo"), "echo", 3)


@pytest.fixture(scope="module")
def echo_folder(echo_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked; read only by agreement."""
    folder = tmp_path_factory.mktemp("unpacked") / "echo"
    unpack_archive(echo_archive, folder)
    return folder
