"""What commands print is printed as it is, whatever archives, paths and callers put into it."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from vlserve.cli import output

TEXTS = {
    "[/x] of [bold]a[/bold] path [1, 2]": "[/x] of [bold]a[/bold] path [1, 2]",
    "\x1b[2J\x07\x9b1A\r": r"\x1b[2J\x07\x9b1A\r",
    ":smile: 标签 ✗": ":smile: 标签 ✗",
    "\\[x]": "\\[x]",
}

Print = Callable[[str], None]
PRINTS: dict[str, Print] = {
    "line": output.print_line,
    "cell": lambda text: output.print_table(("A",), [(text,)]),
    "column": lambda text: output.print_table((text,), [("a",)]),
    "warning": output.print_warning,
}


def _progress(text: str) -> None:
    with output.progress(text) as show:
        show(text)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("way", [*PRINTS, "progress", "spinner"])
def test_nobody_takes_orders_from_a_text(
    way: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.StringIO()
    console = Console(
        file=buffer, width=200, soft_wrap=True, highlight=False, force_terminal=way == "spinner"
    )
    monkeypatch.setattr(output, "stdout", console)
    monkeypatch.setattr(output, "stderr", console)
    PRINTS.get(way, _progress)(text)
    if way != "spinner":  # which is wiped away at its end
        assert TEXTS[text] in buffer.getvalue()
