"""Take the pictures of the console in docs/pictures/, from drawn data. `make screenshots` runs it.

The control service is the real one, over an engine and a gateway in memory. What the gateway and
the judge would have written in the minutes before is written here, with fixed random numbers.
"""

import io
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

from PIL import Image, ImageChops, ImageDraw
from playwright.sync_api import Page, sync_playwright

from support.batch_rows import RECORD
from support.console_pictures import PAGES, PICTURES, digest_of
from support.control_api_server import RunningControl, running_control
from support.rollout_traffic import rollout_record
from vlserve.batch.job import JobFolder, Progress, Receipt
from vlserve.control.api.console import tag_screens
from vlserve.control.judge import Batch, Outcome, Standing, decide, observe
from vlserve.control.rollouts import drift_watch, metric_windows
from vlserve.control.rollouts.answer_log import LoggedAnswer
from vlserve.control.rollouts.log_evidence import AnsweredCopy
from vlserve.control.rollouts.pair_log import PairLog
from vlserve.control.rollouts.state import RolloutState
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.rollouts import RolloutStore
from vlserve.exporter.echo import pack_echo
from vlserve_worker.capture import keep_input

TRAINING = {"animals": 320, "cars": 240, "food": 210, "music": 130, "美食": 100}
"""What the archive would say, had it been trained."""
LABELS = ("animals", "cars", "food", "music", "美食")
WIDTH, HEIGHT, TALLEST = 1280, 760, 1300
TALL = ("rollout", "disagreements", "try")
"""Pictures that show more of their page than a screen."""
COLOURS = 48
"""Of a picture: pages have few, and the files stay small."""
WINDOWS = 40


def main(names: Sequence[str]) -> int:
    """Write the pictures of these names, or all, and the hash of its templates beside each."""
    chance = random.Random(18)
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        print("no Chromium is on the PATH", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="vlserve-pictures-") as scratch:
        folder = Path(scratch)
        with (
            patch.object(drift_watch, "training_labels", lambda _: TRAINING),
            patch.object(tag_screens, "training_labels", lambda _: TRAINING),
            _control(folder, chance) as control,
            sync_playwright() as playwright,
        ):
            browser = playwright.chromium.launch(executable_path=program)
            viewport = {"width": WIDTH, "height": HEIGHT}
            context = browser.new_context(base_url=control.url, locale="en-US", viewport=viewport)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(control.client.console_link().path)
            PICTURES.mkdir(exist_ok=True)
            for picture in names or PAGES:
                path = PAGES[picture][1]
                page.goto(f"/console/{path}")
                if picture == "try":
                    _try(page, folder)
                _keep(picture, page.screenshot(full_page=picture in TALL))
            browser.close()
    return 0


def _keep(picture: str, png: bytes) -> None:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    corner = image.crop((0, image.height - 1, 1, image.height)).resize(image.size)
    box = ImageChops.difference(image, corner).getbbox() or (0, 0, *image.size)
    image = image.crop((0, 0, image.width, min(box[3] + 20, image.height, TALLEST)))
    image.quantize(COLOURS).save(PICTURES / f"{picture}.png", optimize=True)
    digest = f"{digest_of(picture)}\n"
    (PICTURES / f"{picture}.sha256").write_text(digest, encoding="utf-8")
    print(picture)


def _try(page: Page, folder: Path) -> None:
    cover = folder / "cover.jpg"
    cover.write_bytes(_cover(3))
    page.locator("[data-field=image]").set_input_files(cover)
    page.locator("[data-field=text]").fill("零基础 home cooking")
    page.get_by_role("button", name="Send").click()
    page.locator("#answers section").nth(1).wait_for()


@contextmanager
def _control(folder: Path, chance: random.Random) -> Iterator[RunningControl]:
    """Yield a control service in the middle of a rollout of tagger 2, and of a shadow of covers."""
    with running_control(folder) as control:
        for model, versions in (("tagger", (1, 2)), ("covers", (1, 2, 3))):
            for version in versions:
                control.client.register(pack_echo(folder, model, version, LABELS))
            control.client.release(model, 1)
        control.client.release("covers", 2)
        policy = {"weights": [5, 25, 50, 100], "hold_s": 600}
        control.client.start_rollout("tagger", 2, policy)
        control.client.start_capture("covers", 0.1, 7, 512)
    _rollout_under_way(folder, chance)
    with running_control(folder) as control:
        logs = control.settings.state_dir / "logs"
        rollout = control.client.rollout("tagger")
        _requests(logs, chance, f"{rollout.id}/{rollout.step}")
        _answers(logs, chance)
        _pairs(control, logs)
        _load_runs(control.settings.state_dir / "stress", chance)
        _job(control, folder)
        control.engine.trial_answer = {
            "tags": [
                {"tag": tag, "score": score}
                for tag, score in zip(LABELS[::-1], (0.81, 0.1, 0.05, 0.03, 0.01), strict=True)
            ],
            "regions": [
                {"box": [0.35, 0.3, 0.75, 0.8], "score": 0.81},
                {"box": [0.05, 0.1, 0.3, 0.5], "score": 0.32},
            ],
        }
        time.sleep(1.0)  # a tick judges
        yield control


def _rollout_under_way(folder: Path, chance: random.Random) -> None:
    """Put what the judge would know after some minutes into the ledger."""
    with Ledger(folder / "model_store") as ledger:
        store = RolloutStore(ledger)
        rollout = store.under_way("tagger")
        assert rollout is not None
        state = RolloutState.from_json(rollout.state_json)
        now = time.time()
        for number in range(WINDOWS):
            outcomes = [_outcome(chance) for _ in range(60)]
            judge = observe(state.judge, Batch(outcomes, []))
            decision = decide(judge, Standing(120.0, True, True))
            windows = metric_windows.add(
                state.windows,
                outcomes,
                [],
                now=now - 10 * (WINDOWS - number),
                step=judge.step,
                weight=judge.weight,
            )
            e_values = {gate.gate: gate.e_value for gate in decision.gates}
            windows = metric_windows.with_evidence(windows, e_values)
            state = replace(state, judge=judge, windows=windows, decision=decision, held_s=400.0)
        store.save_state(rollout.id, state.to_json())


def _outcome(chance: random.Random) -> Outcome:
    candidate = chance.random() < 0.05
    return Outcome(
        candidate=candidate,
        failed=chance.random() < 0.001,
        latency_ms=chance.lognormvariate(3.2 if candidate else 3.25, 0.3),
        tag=chance.choice(LABELS),
    )


def _requests(logs: Path, chance: random.Random, step: str) -> None:
    """Write the gateway's log of the last 15 minutes."""
    now = time.time()
    with (logs / "access.jsonl").open("a", encoding="utf-8") as log:
        for number in range(450):
            at = datetime.fromtimestamp(now - 900 + 2 * number, UTC)
            model = "covers" if chance.random() < 0.35 else "tagger"
            version = 2 if model == "covers" or chance.random() < 0.05 else 1
            line = {
                "at": at.isoformat(),
                "request_id": f"r{number}",
                "model": model,
                "version": str(version),
                "step": step if model == "tagger" else None,
                "status": 500 if chance.random() < 0.004 else 200,
                "duration_ms": chance.lognormvariate(3.2, 0.35),
                "tries": 1,
                "bytes_in": int(chance.lognormvariate(11.5, 0.4)),
                "schema": 1,
            }
            log.write(json.dumps(line) + "\n")


def _answers(logs: Path, chance: random.Random) -> None:
    """Write what tagger 1 answered in the last days."""
    now = time.time()
    with (logs / "answers.jsonl").open("a", encoding="utf-8") as log:
        for number in range(1200):
            at = datetime.fromtimestamp(now - 200 * (1200 - number), UTC).isoformat()
            label = chance.choices(LABELS, (30, 25, 20, 15, 10))[0]
            request = {"request_id": f"a{number}", "model": "tagger", "version": 1, "at": at}
            is_refused = chance.random() < 0.01
            outcome = {"error": "text_too_long"} if is_refused else {"scores": {label: 0.8}}
            log.write(json.dumps({**request, **outcome}) + "\n")


def _pairs(control: RunningControl, logs: Path) -> None:
    """Write pairs of covers that differ, and keep the input of the newest."""
    rollout = replace(rollout_record(), model="covers", candidate=3, stable=2)
    labels = (
        ("cars", "food"),
        ("food", "美食"),
        ("music", "animals"),
        ("food", "美食"),
        ("food", "美食"),
    )
    copies = [
        AnsweredCopy(
            f"7f3c{number:04x}",
            LoggedAnswer({stable: 0.62, candidate: 0.21, "music": 0.05}),
            LoggedAnswer({candidate: 0.71, stable: 0.18, "music": 0.04}),
        )
        for number, (stable, candidate) in enumerate(labels)
    ]
    log = PairLog(logs / "pairs.jsonl")
    for copy in copies:
        log.write(rollout, [copy], ceiling=0.2)
    folder = control.settings.state_dir / "capture" / "covers"
    for number, copy in enumerate(copies):
        fields = {"image": _cover(number), "text": "今天做一道家常菜 home cooking".encode()}
        keep_input(folder, copy.request_id, fields, 10**7)


def _cover(number: int) -> bytes:
    image = Image.new("RGB", (320, 180), ("#274c77", "#6b4f3b", "#3d6b4f")[number % 3])
    draw = ImageDraw.Draw(image)
    draw.ellipse((120, 60, 240, 140), fill="#e8c07d")
    draw.rectangle((20, 20, 90, 90), fill="#c8553d")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _load_runs(folder: Path, chance: random.Random) -> None:
    for number, (callers, rate) in enumerate(((1, 41.2), (4, 98.4), (16, 131.7))):
        run = folder / f"tagger-2026112{number}-120000"
        run.mkdir(parents=True)
        p50 = 1000 * callers / rate
        figures = {"requests": int(30 * rate), "error_rate": 0.0, "rps": rate, "versions": {1: 1}}
        stages = {"gateway": 0.4, "queue": 0.3 * p50, "decode": 2.7, "infer": 0.5 * p50}
        result = {
            "model": "tagger",
            "load": f"{callers} callers",
            "duration_s": 30,
            "passed": callers < 16,
            "verdict": "the limits held" if callers < 16 else "p99 is over 150 ms",
            "figures": {**figures, "p50_ms": p50, "p99_ms": p50 * chance.uniform(1.4, 1.6)},
            "stages": {"all": {"stage_ms": stages}},
        }
        (run / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _job(control: RunningControl, folder: Path) -> None:
    out = folder / "answers"
    job = JobFolder(out)
    with job.locked():
        job.begin(RECORD)
        job.tell_progress(Progress(share=0.62, left_s=95.0, at=time.time()))
    for part in range(31):
        receipt = Receipt(
            part=part,
            first_row=4096 * part,
            rows=4096,
            errors={"image_unreadable": 3, "text_too_long": 1} if part % 5 == 0 else {},
            labels={},
            seconds=5.0,
            cpu_seconds=5.0,
            ended_at=1000.0 + 5 * part,
        )
        file = out / ".vlserve" / "receipts" / f"{part:05}.json"
        file.write_text(receipt.model_dump_json(), encoding="utf-8")
    control.client.announce_batch_job(out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
