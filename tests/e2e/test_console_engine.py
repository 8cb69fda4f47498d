"""The console and real engines: a trial is answered as a client is, and counted nowhere; inputs are
kept where the operator says so."""

import io
import re
from pathlib import Path

import httpx
from PIL import Image

from support.engines import on_triton
from support.running_stack import wait_until
from vlserve.control.api.console.access import TOKEN_HEADER
from vlserve.control.captures import read_input
from vlserve.exporter.echo import pack_echo
from vlserve.testing import RunningStack

pytestmark = on_triton


def _cover() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG")
    return file.getvalue()


def test_a_trial_is_answered_and_counted_nowhere(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    stack.control.register(pack_echo(tmp_path, new_model, 1))
    stack.control.release(new_model, 1)
    form = {"data": {"text": "cat"}, "files": {"image": ("a.png", _cover(), "image/png")}}
    url = stack.settings.control_url
    with httpx.Client(base_url=url, trust_env=False, timeout=60.0) as browser:
        page = browser.get(stack.control.console_link().path)
        token = re.search(r'data-token="([^"]+)"', page.text)
        assert token
        headers = {TOKEN_HEADER: token[1], "Origin": url}
        path = f"/console/models/{new_model}/try?version=1"
        trial = browser.post(path, headers=headers, **form)  # type: ignore[arg-type]
        refusal = browser.post(path, headers=headers, data={"text": "cat"})
    by_client = stack.http.post(f"/predictions/{new_model}", **form).json()  # type: ignore[arg-type]
    assert trial.status_code == 200
    for tag in by_client["tags"]:
        assert f"<bdi>{tag['tag']}</bdi>" in trial.text
    assert "Time of each stage" in trial.text and "infer" in trial.text
    assert "field_invalid: image" in refusal.text

    def is_counted() -> bool:
        return any(each.model == new_model for each in stack.control.traffic())

    wait_until(is_counted)
    logs = stack.settings.state_dir / "logs"
    access = (logs / "access.jsonl").read_text(encoding="utf-8")
    assert access.count(f'"{new_model}"') == 1
    assert "trial-" not in access
    assert "trial-" in (logs / "answers.jsonl").read_text(encoding="utf-8")


def test_inputs_are_kept_and_purged(stack: RunningStack, new_model: str, tmp_path: Path) -> None:
    stack.control.register(pack_echo(tmp_path, new_model, 1))
    stack.control.release(new_model, 1)
    form = {"data": {"text": "零基础"}, "files": {"image": ("a.png", _cover(), "image/png")}}

    def ask(name: str) -> None:
        headers = {"X-Request-Id": name}
        path = f"/predictions/{new_model}"
        stack.http.post(path, headers=headers, **form).raise_for_status()  # type: ignore[arg-type]

    ask(f"{new_model}-before")
    stack.control.start_capture(new_model, 1.0, 1, 16)

    def is_kept() -> bool:
        ask(f"{new_model}-after")
        return stack.control.capture(new_model).inputs > 0

    wait_until(is_kept)  # workers read the plan once a second
    state_dir = stack.settings.state_dir
    entry = read_input(state_dir, new_model, f"{new_model}-after")
    assert entry is not None and entry.text == "零基础" and entry.images == {"image": _cover()}
    assert read_input(state_dir, new_model, f"{new_model}-before") is None
    assert stack.control.end_capture(new_model, "purge").inputs == 0
