"""docs/v2.md says which outputs a task has."""

import re

from support.documents import PROJECT
from vlserve_worker.v2.outputs import OUTPUTS, Output

PAGE = (PROJECT / "docs" / "v2.md").read_text(encoding="utf-8")


def written(output: Output) -> str:
    shape = ", ".join(["items", *["k"] * output.dims])
    return f"`{output.name}` {output.datatype} [{shape}]"


def test_the_page_has_each_task_s_outputs() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.partition("## Answers")[2], re.M))
    assert rows == {task: ", ".join(map(written, outputs)) for task, outputs in OUTPUTS.items()}
