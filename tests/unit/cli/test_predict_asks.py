"""What `vlserve predict` sends."""

from typing import Any

import pytest

from support.command_line import Run


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (["--text", "猫"], {"text": "猫"}),
        (["--text", "猫", "--top-k", "3"], {"text": "猫", "top_k": "3"}),
        (["--top-k", "1"], {"top_k": "1"}),
    ],
)
def test_fields_of_the_form(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], fields: dict[str, str]
) -> None:
    forms: list[dict[str, str]] = []

    def request(_: Any, model: str, form: dict[str, str], *__: Any) -> dict[str, Any]:
        forms.append(form)
        return {"model": model, "version": 1, "request_id": "r", "tags": []}

    monkeypatch.setattr("vlserve.cli.predict.request_prediction", request)
    assert run("predict", "tagger", *words).code == 0
    assert forms == [fields]


def test_no_answers_are_no_number_of_answers(run: Run) -> None:
    result = run("predict", "tagger", "--top-k", "0")
    assert (result.code, "--top-k" in result.err) == (2, True)
