"""Says at the end of a run what of the golden cases no test covers yet."""

import pytest

from support.golden_cases import golden_folder, not_covered
from support.training_outputs import not_yet_covered


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_sep("-", f"families in {golden_folder()} that no test covers yet")
    for family in not_covered() or ["none"]:
        terminalreporter.write_line(family)
    terminalreporter.write_sep("-", "outputs of training that no test covers yet")
    for case in not_yet_covered() or ["none"]:
        terminalreporter.write_line(case)
