"""Says at the end of a run which golden families no test covers yet."""

import pytest
from golden_cases import golden_folder, not_covered


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_sep("-", f"families in {golden_folder()} that no test covers yet")
    for family in not_covered() or ["none"]:
        terminalreporter.write_line(family)
