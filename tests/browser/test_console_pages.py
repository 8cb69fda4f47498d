"""The console in a browser: a link, a register by drop, a rollout that advances, and the way back.

The control service is the real one, over an engine and a gateway in memory; the evidence of the
rollout is what the gateway would log.
"""

import ast
import base64
import json
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from typer.testing import CliRunner

from support.control_api_server import RunningControl, running_control
from support.key_calls import named_keys
from support.rollout_traffic import Behaviour, Requests
from support.running_stack import wait_until
from support.signers import key_pair
from vlserve.cli import app, feedback
from vlserve.control.named_keys import Role
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.answer_log import AnswerLine
from vlserve.signing.archives import sign_archive
from vlserve.signing.beside import provenance_file, read_beside, signature_file

ROLLOUT = """
weights: [50, 100]
hold_s: 0
minimum: {candidate: 20, stable: 20, units: 20}
"""
PATIENCE_MS = 60_000
PAGES = [
    "",
    "register",
    "login",
    "load-tests",
    "batch-jobs",
    "models/tagger",
    "models/tagger/rollout",
    "models/tagger/pairs",
    "models/tagger/try",
    "models/tagger/tags",
    "models/tagger/history",
    "models/tagger/versions/1",
]


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningControl]:
    """tagger 1 has all traffic, 2 is ready."""
    folder = tmp_path_factory.mktemp("console")
    (folder / "serving_config").mkdir()
    (folder / "serving_config" / "rollout.yaml").write_text(ROLLOUT, encoding="utf-8")
    with running_control(folder) as control:
        for version in (1, 2):
            control.client.register(pack_echo(folder, "tagger", version))
        control.client.release("tagger", 1)
        yield control


@pytest.fixture
def page(chromium: Browser, control: RunningControl) -> Iterator[Page]:
    """A page of a browser that came by the link; it must log no error."""
    context = chromium.new_context(base_url=control.url, locale="en-US")
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    errors: list[str] = []
    page.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(control.client.console_link().path)
    expect(page).to_have_url(re.compile("/console/$"), timeout=PATIENCE_MS)
    yield page
    context.close()
    assert errors == []


def _press(page: Page, name: str) -> None:
    """Open the confirmation of an action, and confirm it."""
    action = page.locator("details.act", has=page.locator("summary", has_text=name)).first
    action.locator("> summary").click()
    action.get_by_role("button", name=name).click()


def _drop(page: Page, *files: Path, place: str = "#drop") -> None:
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [content, name] of files) {
                const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
                transfer.items.add(new File([bytes], name));
            }
            return transfer;
        }""",
        [[base64.b64encode(file.read_bytes()).decode(), file.name] for file in files],
    )
    page.locator(place).dispatch_event("drop", {"dataTransfer": transfer})


def _log_requests(control: RunningControl, step: str, first: int) -> None:
    """Log 60 requests that the gateway routed half and half, after their answers."""
    logs = control.settings.state_dir / "logs"
    numbers = range(first, first + 60)
    with (logs / "answers.jsonl").open("a", encoding="utf-8") as answers:
        for number in numbers:
            line = AnswerLine(f"r{number}", "tagger", 1 + number % 2, scores={"red": 0.9})
            answers.write(f"{line.to_json()}\n")
    with (logs / "access.jsonl").open("a", encoding="utf-8") as log:
        for number in numbers:
            line = {
                "at": datetime.now(UTC).isoformat(),
                "request_id": f"r{number}",
                "model": "tagger",
                "version": str(1 + number % 2),
                "step": step,
                "status": 200,
                "duration_ms": 10 + number % 3,
                "tries": 1,
                "schema": 1,
            }
            log.write(json.dumps(line) + "\n")


def test_a_key_signs_in_and_what_its_role_does_not_cover_is_refused(
    chromium: Browser, control: RunningControl
) -> None:
    key = named_keys(control).add("viewer", [Role.READ])
    context = chromium.new_context(base_url=control.url, locale="en-US")
    context.set_default_timeout(PATIENCE_MS)
    try:
        page = context.new_page()
        page.goto("/console/")  # who is nobody is asked for a key
        page.get_by_label("Key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        expect(page).to_have_url(re.compile("/console/$"), timeout=PATIENCE_MS)
        expect(page.get_by_text("Signed in by the key viewer: read.")).to_be_visible()
        page.goto("/console/models/tagger")
        _press(page, "Release at once")
        expect(page.get_by_text("needs the role release")).to_be_visible()
        assert control.client.model("tagger").stable == 1
        named_keys(control).revoke("viewer")
        page.goto("/console/")
        expect(page.get_by_label("Key")).to_be_visible()
    finally:
        context.close()


def test_a_signature_is_dropped_with_its_archive(
    page: Page, control: RunningControl, tmp_path: Path
) -> None:
    archive = pack_echo(tmp_path, "signed", 1)
    sign_archive(archive, key_pair(tmp_path, "release").key)
    page.goto("/console/register")
    _drop(
        page, provenance_file(archive), signature_file(archive), tmp_path / "release.pem", archive
    )
    expect(page.locator("#said")).to_contain_text("Give one archive")
    _drop(page, provenance_file(archive), signature_file(archive), archive)
    expect(page).to_have_url(re.compile("/console/models/signed$"), timeout=PATIENCE_MS)
    kept = control.settings.model_store / "signed" / "1" / archive.name
    assert kept.read_bytes() == archive.read_bytes()
    assert read_beside(kept) == read_beside(archive) is not None


def test_an_archive_is_dropped_and_a_rollout_advances(
    page: Page, control: RunningControl, tmp_path: Path
) -> None:
    page.get_by_role("link", name="Register").click()
    _drop(page, pack_echo(tmp_path, "tagger", 3))
    expect(page).to_have_url(re.compile("/console/models/tagger$"), timeout=PATIENCE_MS)
    expect(page.locator("tbody th", has_text="3")).to_be_visible()

    page.goto("/console/models/tagger")
    _press(page, "Start a rollout")  # of version 2, the first that may
    expect(page).to_have_url(re.compile("/rollout$"), timeout=PATIENCE_MS)
    expect(page.locator(".ladder .present")).to_have_text("50 %")
    rollout = control.client.rollout("tagger")
    assert rollout.candidate == 2
    deadline, number = time.monotonic() + 60, 0
    while rollout.status == "running" and time.monotonic() < deadline:
        _log_requests(control, f"{rollout.id}/{rollout.step}", number)
        number += 60
        page.wait_for_timeout(200)
        rollout = control.client.rollout("tagger")
    expect(page.locator(".lead strong")).to_have_text("promoted", timeout=PATIENCE_MS)

    page.get_by_role("link", name="Versions").click()
    _press(page, "Roll back to 1")
    expect(page.locator("tbody tr", has_text="stable").locator("th")).to_have_text("1")
    assert control.client.model("tagger").stable == 1


def test_a_rollout_is_aborted(page: Page, control: RunningControl) -> None:
    control.client.start_rollout("tagger", 2, {"hold_s": 600})
    page.get_by_role("link", name="tagger").click()
    page.get_by_role("link", name="Rollout", exact=True).click()
    control.client.pause("tagger")  # by somebody else: the page learns of it
    expect(page.locator("summary", has_text="Resume")).to_be_visible(timeout=PATIENCE_MS)
    _press(page, "Abort")
    expect(page.locator(".lead strong")).to_have_text("aborted by hand")
    assert control.client.rollout("tagger").status == "aborted"


def test_two_versions_are_tried_side_by_side(
    page: Page, control: RunningControl, tmp_path: Path
) -> None:
    cover = tmp_path / 'it\'s "mine".png'
    Image.new("RGB", (64, 32), "red").save(cover)
    control.engine.trial_answer = {
        "tags": [{"tag": "<b>cars</b>", "score": 0.75}],
        "regions": [{"box": [0.25, 0.25, 0.5, 0.75], "score": 0.5}],
        "heat_map": base64.b64encode(cover.read_bytes()).decode(),
    }
    page.goto("/console/models/tagger/try?version=1")
    _drop(page, cover, place="#trial")
    page.get_by_label("text").fill("it's a $title")
    page.get_by_label("Beside it").select_option("2")
    page.get_by_role("button", name="Send").click()
    answers = page.locator("#answers section")
    expect(answers).to_have_count(2, timeout=PATIENCE_MS)
    expect(answers.first.locator("th").first).to_have_text("<b>cars</b>")
    expect(answers.first.locator("rect")).to_have_attribute("width", "0.25")
    for image in page.locator("#answers img").all():
        assert image.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 64
    trials = [(key, b"PNG" in request.body) for _, key, request in control.engine.sent[-2:]]
    assert trials == [(("tagger", 1), True), (("tagger", 2), True)]
    curl = page.locator("#as-curl").text_content() or ""
    words = shlex.split(curl.replace("\\\n", " "))  # as a shell goes on with the next line
    assert words == [
        *("curl", f"{control.settings.gateway_url}/predictions/tagger/1"),
        *("-F", 'image=@"it\'s \\"mine\\".png"', "--form-string", "text=it's a $title"),
    ]
    program = ast.parse(page.locator("#as-python").text_content() or "")
    call = next(node for node in ast.walk(program) if isinstance(node, ast.Call))
    arguments = {each.arg: ast.unparse(each.value) for each in call.keywords}
    assert arguments["data"] == repr({"text": "it's a $title"})
    assert arguments["files"] == f"{{'image': open({cover.name!r}, 'rb')}}"


def test_a_disagreement_is_marked_and_its_label_exported(
    page: Page, control: RunningControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow = {"shadow_percent": 100, "minimum": {"pairs": 400}}
    control.client.start_rollout("tagger", 2, shadow)
    behaviours = {
        version: Behaviour(scores=lambda _, tag=tag: {tag: 0.9})  # type: ignore[misc]
        for version, tag in ((1, "<i>music</i>"), (2, "food"))
    }
    Requests(control.settings.state_dir / "logs", control.gateway).send(1, behaviours)
    page.goto("/console/models/tagger/pairs")

    def has_pairs() -> int:
        page.reload()
        return page.locator(".pair").count()

    wait_until(has_pairs, timeout_s=60)
    page.get_by_role("button", name="Stable is right").first.click()
    expect(page.get_by_text("Marked:").locator("..")).to_contain_text("<i>music</i>")
    (mark,) = control.client.marks("tagger")
    monkeypatch.setattr(feedback, "control_client", lambda: nullcontext(control.client))
    monkeypatch.setattr(feedback, "stack_settings", lambda: control.settings)
    labels = tmp_path / "labels.jsonl"
    result = CliRunner().invoke(app, ["feedback", "tagger", "--export", str(labels)])
    assert result.exit_code == 0, result.output
    assert json.loads(labels.read_text(encoding="utf-8")) == {
        "id": mark.request_id,
        "label": "<i>music</i>",
    }
    control.client.abort("tagger")


def test_both_languages(page: Page) -> None:
    page.get_by_role("link", name="中文").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("现状")
    page.get_by_role("link", name="tagger").click()
    expect(page.get_by_role("heading", name="操作")).to_be_visible()
    page.get_by_role("link", name="English").click()
    expect(page.get_by_role("heading", name="Actions")).to_be_visible()


def test_axe_finds_nothing_serious(page: Page) -> None:
    axe = Axe()
    for path in PAGES:
        page.goto(f"/console/{path}")
        _assert_nothing_serious(path, axe.run(page).response["violations"])
        page.emulate_media(color_scheme="dark")  # in which the colours alone are others
        of_colours = axe.run(page, options={"runOnly": ["color-contrast"]}).response
        assert [each["id"] for each in of_colours["passes"]] == ["color-contrast"]
        _assert_nothing_serious(f"{path}, dark", of_colours["violations"])
        page.emulate_media(color_scheme="light")


def _assert_nothing_serious(where: str, violations: list[dict[str, Any]]) -> None:
    serious = [each for each in violations if each["impact"] in ("serious", "critical")]
    assert serious == [], (where, [(each["id"], each["nodes"][0]["html"]) for each in serious])


def test_a_narrow_screen_scrolls_within_its_tables(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    for path in PAGES:
        page.goto(f"/console/{path}")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 360, path


def test_without_scripts_the_pages_read(chromium: Browser, control: RunningControl) -> None:
    context = chromium.new_context(base_url=control.url, java_script_enabled=False)
    page = context.new_page()
    page.goto(control.client.console_link().path)
    expect(page).to_have_url(re.compile("/console/$"), timeout=PATIENCE_MS)
    for path in PAGES:
        page.goto(f"/console/{path}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.goto("/console/models/tagger")
    _press(page, "Release at once")
    expect(page.get_by_text("JavaScript off")).to_be_visible()
    assert control.client.model("tagger").stable == 1
    context.close()
