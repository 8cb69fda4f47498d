"""The console's texts: both languages have each, and each that a page asks for is there."""

import re
from pathlib import Path
from string import Formatter
from typing import get_args

import pytest

from vlserve.control.api.console import texts
from vlserve.control.api.console.forms import StartForm
from vlserve.control.api.console.pair_screens import KINDS
from vlserve.control.api.console.texts import LANGUAGES, catalogue, choose_language
from vlserve.control.batch_jobs import JobState
from vlserve.control.domain import Right, RolloutStatus
from vlserve.control.judge import Action, Policy
from vlserve.control.judge.gates import Verdict

ROOM = Path(texts.__file__).parent
_COMPOSED = {
    *(f"action_{action}" for action in Action),
    *(f"status_{status}" for status in RolloutStatus),
    *(f"verdict_{verdict}" for verdict in Verdict),
    *(f"job_{state}" for state in get_args(JobState)),
    *(f"start_{name}" for name in StartForm.model_fields if name not in ("token", "version")),
    *(f"kind_{kind}" for kind in KINDS),
    *(f"right_{right}" for right in get_args(Right)),
    *(f"gate_{gate}" for gate in type(Policy().gates).model_fields),
}


def _asked_for() -> set[str]:
    files = [*ROOM.glob("templates/*.j2"), *ROOM.glob("*.py")]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return set(re.findall(r"""\b(?:t|texts)\(['"]([a-z_0-9]+)['"][,)]""", source))


def _fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_every_language_has_every_text() -> None:
    for key, of_languages in catalogue().items():
        assert list(of_languages) == list(LANGUAGES), key
        assert all(text.strip() for text in of_languages.values()), key
        fields = {
            frozenset(f[1] for f in Formatter().parse(x) if f[1]) for x in of_languages.values()
        }
        assert len(fields) == 1, f"{key} takes other values in another language"


def test_what_pages_ask_for_is_there_and_nothing_else() -> None:
    named_texts = {"no_session", "how_to_enter", "refused", "foreign_form", "not_done"}
    named_texts |= {"code_used", "wrong_key"}
    assert _asked_for() | _COMPOSED | named_texts == set(catalogue())


@pytest.mark.parametrize(
    ("choice", "header", "language"),
    [
        ("", "", "en"),
        ("", "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("", "en;q=0.5, zh;q=0.4", "en"),
        ("", "fr, de;q=0.9", "en"),
        ("", "zh;q=nothing, en", "en"),
        ("", "," * 10_000, "en"),
        ("zh", "en", "zh"),
        ("fr", "en", "en"),
    ],
)
def test_the_language_of_a_page(choice: str, header: str, language: str) -> None:
    assert choose_language(choice, header) == language
