"""Bodies that nobody would write, at both APIs: each is answered, none by an internal error.

    .venv/bin/python -m benchmarks.endurance.fuzz --examples 400

Starts a stack of its own. Schemathesis draws requests, fitting and unfitting, from the OpenAPI page
of the control service, for its own paths and for the gateway's predictions; clients ask another
model beside them and hold each answer against the right one. Prints what was sent; exit code 1 when
a request was answered by a server error, a client got no right answer, or a process of the stack
was replaced.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from benchmarks.lib.own_stack import own_stack
from vlserve.cli.output import print_line, print_table
from vlserve.control.key import read_key
from vlserve.stack.stopping import processes
from vlserve.testing.clients import Clients, Load, drawn_questions
from vlserve.testing.editions import echo_editions
from vlserve.testing.stack import RunningStack

NEIGHBOUR, FUZZED = "neighbour", "fuzzed"
MODELS = [FUZZED, "nosuch"]
VERSIONS = [1, 2, 99]
PREDICTIONS = "^/predictions"
HOOKS = Path(__file__).with_name("json_lines.py")
"""Schemathesis reads it, to send what it has no serializer of."""


@dataclass(frozen=True)
class Fuzzed:
    """One API: how many requests were sent, and the exit code of Schemathesis (0: none failed)."""

    api: str
    requests: int
    exit_code: int


def page_of(stack: RunningStack) -> dict[str, Any]:
    """Return the stack's OpenAPI page with its own models and versions in the paths."""
    page: dict[str, Any] = httpx.get(
        f"{stack.settings.control_url}/openapi.json", trust_env=False
    ).json()
    for path in page["paths"].values():
        for operation in (path, *(value for value in path.values() if isinstance(value, dict))):
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in ("model", "version"):
                    values = MODELS if parameter["name"] == "model" else VERSIONS
                    parameter["schema"] = {"enum": values}
    return page


def fuzz(
    api: str, page: Path, url: str, path_option: str, examples: int, headers: Mapping[str, str]
) -> Fuzzed:
    """Send requests to ``url`` and print what Schemathesis says.

    Args:
        api: What the result is called.
        page: The OpenAPI page, JSON.
        url: Scheme, host and port.
        path_option: The option that chooses the paths.
        examples: The highest number of requests an operation.
        headers: Sent with each request.
    """
    report = page.with_name(f"{api}.json")
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", str(page), "--url", url, path_option),
        *("--checks", "not_a_server_error", "--max-examples", str(examples), "--seed", "1"),
        *("--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-shrink"),
        *("--report", "json", "--report-json-path", str(report), "--warnings", "off"),
        *("--request-timeout", "60", "--suppress-health-check", "all"),
        *(part for name, value in headers.items() for part in ("--header", f"{name}:{value}")),
    ]
    hooks = {"SCHEMATHESIS_HOOKS": str(HOOKS)}
    result = subprocess.run(command, cwd=page.parent, env=os.environ | hooks, check=False)
    return Fuzzed(api, count_requests(report), result.returncode)


def count_requests(report: Path) -> int:
    """Return how many requests the JSON report of a run counts."""
    return int(json.loads(report.read_text(encoding="utf-8"))["test_cases"]["generated"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--examples", type=int, default=400, help="requests an operation, at most; default 400"
    )
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second of the clients")
    parser.add_argument("--out", type=Path, default=Path("fuzz.json"))
    return parser.parse_args()


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="vlserve-fuzz-") as scratch:
        folder = Path(scratch)
        questions = drawn_questions(folder / "covers")
        (neighbour,) = islice(echo_editions(folder, NEIGHBOUR, questions), 1)
        editions = list(islice(echo_editions(folder, FUZZED, questions), 2))
        with own_stack(folder) as stack:
            for edition in (neighbour, *editions):
                stack.control.register(edition.archive)
            for model in (NEIGHBOUR, FUZZED):
                stack.control.release(model, 1)
            page = folder / "openapi.json"
            page.write_text(json.dumps(page_of(stack)), encoding="utf-8")
            settings = stack.settings
            load = Load(settings.gateway_url, NEIGHBOUR, clients=6, rate_per_s=options.rate)
            clients = Clients(load, questions, right={1: neighbour.answers})
            before = {process.pid for process in processes(settings)}
            key = {"Authorization": f"Bearer {read_key(settings.control_key_file)}"}
            models = httpx.get(f"{settings.control_url}/models", headers=key, trust_env=False)
            models.raise_for_status()  # else all would be refused, and nothing could fail
            with clients.asking():
                runs = [
                    fuzz(
                        "gateway",
                        page,
                        settings.gateway_url,
                        f"--include-path-regex={PREDICTIONS}",
                        options.examples,
                        {},
                    ),
                    fuzz(
                        "control",
                        page,
                        settings.control_url,
                        f"--exclude-path-regex={PREDICTIONS}",
                        options.examples,
                        key,
                    ),
                ]
            replaced_pids = before - {process.pid for process in processes(settings)}
    failures = Counter(exchange.failure for exchange in clients.exchanges if exchange.failure)
    passed = (
        all(run.requests and not run.exit_code for run in runs)
        and bool(clients.exchanges)
        and not failures
        and not replaced_pids
    )
    result = {
        "requests": {run.api: run.requests for run in runs},
        "exit_codes": {run.api: run.exit_code for run in runs},
        "neighbours": len(clients.exchanges),
        "failures": dict(failures),
        "processes_replaced": len(replaced_pids),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    rows = [(run.api, run.requests, run.exit_code) for run in runs]
    print_table(("API", "REQUESTS", "EXIT CODE"), rows)
    wrong = sum(failures.values())
    print_line(f"{len(clients.exchanges)} requests beside them, {wrong} not answered right")
    print_line("passed" if passed else "failed")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
