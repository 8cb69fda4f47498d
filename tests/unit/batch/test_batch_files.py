"""What is written of answers whose task does not say what they hold."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from vlserve_worker.batch_files import writer_of

HALF = "\ud83d"
"""Of a surrogate pair, which JSON may hold and UTF-8 may not."""


@pytest.mark.parametrize(("value", "read"), [(f"a{HALF}", "a?"), (b"bytes", "bytes"), ("猫", "猫")])
def test_a_whole_answer_holds_whatever_an_answer_may(tmp_path: Path, value: Any, read: str) -> None:
    writer = writer_of("parquet", BaseModel, ())
    writer.write(tmp_path / "part.parquet", [{"id": "a", "row": 0, "title": value}])
    assert writer.read(tmp_path / "part.parquet") == [{"id": "a", "row": 0, "title": read}]
