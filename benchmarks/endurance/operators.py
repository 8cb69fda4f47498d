"""Many operators at once: each word is done or refused with a reason, and callers notice nothing.

    .venv/bin/python -m benchmarks.endurance.operators --operations 3000

Starts a stack of its own with two models in several versions. Operators register, release, begin,
steer and abort rollouts, roll back, unload and delete at random (`--seed`), all at the same models,
while clients ask one of them and hold each answer against the right one. Prints what each word came
to; exit code 1 when a word ended in an error that is no refusal, a request got no right answer, or
the stack is not whole afterwards.
"""

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from benchmarks.lib.own_stack import own_stack
from vlserve.cli.output import print_line, print_table
from vlserve.control.client import ControlClient
from vlserve.errors import ControlError, StackError, VlserveError
from vlserve.testing.clients import Clients, Load, Question, drawn_questions
from vlserve.testing.editions import Edition, echo_editions
from vlserve.testing.stack import RunningStack

ASKED, OTHER = "asked", "other"
KEPT = 1
"""The version that nobody unloads: clients ask for it by path."""
VERSIONS = 4
DONE = "done"
PLAN = {"weights": [50, 100], "hold_s": 60}

Word = Callable[[ControlClient, random.Random, str], object]
Tally = Counter[tuple[str, str]]
"""(word, what it came to) -> how often."""


def words(archives: Mapping[str, Sequence[Path]]) -> dict[str, Word]:
    """Return what an operator may do to a model; the versions are drawn."""

    def any_version(draw: random.Random) -> int:
        return draw.randint(1, VERSIONS)

    def not_kept(draw: random.Random) -> int:
        return draw.randint(KEPT + 1, VERSIONS)

    return {
        "register": lambda control, draw, model: control.register(draw.choice(archives[model])),
        "release": lambda control, draw, model: control.release(model, any_version(draw)),
        "start": lambda control, draw, model: control.start_rollout(model, any_version(draw), PLAN),
        "pause": lambda control, draw, model: control.pause(model),
        "resume": lambda control, draw, model: control.resume(model),
        "promote": lambda control, draw, model: control.promote(model),
        "abort": lambda control, draw, model: control.abort(model),
        "rollback": lambda control, draw, model: control.rollback(model),
        "unload": lambda control, draw, model: control.unload(model, not_kept(draw)),
        "delete": lambda control, draw, model: control.delete(model, not_kept(draw)),
        "status": lambda control, draw, model: control.model(model),
        "history": lambda control, draw, model: control.history(model),
    }


def operate(control: ControlClient, vocabulary: Mapping[str, Word], seed: int, count: int) -> Tally:
    """Say ``count`` words drawn from ``vocabulary``; returns how each ended."""
    draw = random.Random(seed)
    ends: Tally = Counter()
    for _ in range(count):
        name = draw.choice(list(vocabulary))
        ends[name, _outcome(vocabulary[name], control, draw)] += 1
    return ends


def _outcome(word: Word, control: ControlClient, draw: random.Random) -> str:
    try:
        word(control, draw, draw.choice((ASKED, OTHER)))
    except VlserveError as error:
        return f"{type(error).__name__}{': ' + str(error) if is_fault(error) else ''}"
    return DONE


def is_fault(error: VlserveError) -> bool:
    """Return whether the service failed rather than refused: it has no name for the error, or is
    not there."""
    return type(error) is ControlError or isinstance(error, StackError)


def faults_afterwards(stack: RunningStack, questions: Sequence[Question]) -> list[str]:
    """Return what is wrong once the operators have left."""
    faults = []
    for model in (ASKED, OTHER):
        view = stack.control.model(model)
        weights = {version.version: version.weight for version in view.versions if version.weight}
        if sum(weights.values()) != 100:
            faults.append(f"the weights of {model} are {weights}")
        post = questions[0].post
        reply = stack.http.post(
            f"/predictions/{model}", content=post.body, headers={"Content-Type": post.content_type}
        )
        if reply.status_code != 200:
            faults.append(f"{model} answers {reply.status_code}")
    return faults


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--operations", type=int, default=3000)
    parser.add_argument("--operators", type=int, default=8)
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second of the clients")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("operators.json"))
    return parser.parse_args()


def _editions(folder: Path, questions: Sequence[Question]) -> dict[str, list[Edition]]:
    return {
        model: list(islice(echo_editions(folder / model, model, questions), VERSIONS))
        for model in (ASKED, OTHER)
    }


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="vlserve-operators-") as scratch:
        folder = Path(scratch)
        questions = drawn_questions(folder / "covers")
        editions = _editions(folder, questions)
        with own_stack(folder) as stack:
            for model, own in editions.items():
                stack.control.register(own[0].archive)
                stack.control.release(model, own[0].version)
            load = Load(stack.settings.gateway_url, ASKED, clients=6, rate_per_s=options.rate)
            right = {edition.version: edition.answers for edition in editions[ASKED]}
            clients = Clients(load, questions, right)
            clients.pin(KEPT)
            vocabulary = words({model: [e.archive for e in own] for model, own in editions.items()})
            share = max(1, options.operations // options.operators)
            ends: Tally = Counter()
            with clients.asking(), ThreadPoolExecutor(options.operators) as pool:
                seeds = range(options.seed, options.seed + options.operators)
                for tally in pool.map(
                    lambda seed: operate(stack.control, vocabulary, seed, share), seeds
                ):
                    ends += tally
            faults = faults_afterwards(stack, questions)
    names = {end for _, end in ends}
    faults += sorted(end for end in names if ": " in end)
    failures = Counter(exchange.failure for exchange in clients.exchanges if exchange.failure)
    faults += [f"{count} requests: {failure}" for failure, count in failures.items()]
    result = {
        "operations": sum(ends.values()),
        "ends": [{"word": word, "end": end, "count": n} for (word, end), n in ends.items()],
        "requests": len(clients.exchanges),
        "faults": faults,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_table(("WORD", "END", "COUNT"), [(*key, n) for key, n in sorted(ends.items())])
    print_line(f"{sum(ends.values())} operations, {len(clients.exchanges)} requests beside them")
    print_line(f"failed: {'; '.join(faults)}" if faults else "passed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
