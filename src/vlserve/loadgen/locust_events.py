"""What a load file does at the events of a Locust run: start, end, and the exit code."""

import logging
import os
import signal
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import gevent
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import Runner, WorkerRunner

from vlserve.loadgen.load_plan import LEAST_SHARE_SENT
from vlserve.loadgen.load_session import LoadSession
from vlserve.loadgen.locust_users import OpenLoopUser, PredictionUser

_log = logging.getLogger(__name__)


def connect_to_locust(add_options: Callable[[LocustArgumentParser], None]) -> None:
    """Prepare each run of the load file that calls this, and end it in good order.

    ``add_options`` adds the file's options to Locust's parser, with `add_load_options` first.
    """
    events.init_command_line_parser.add_listener(add_options)
    events.init.add_listener(_prepare_run)
    events.test_start.add_listener(_start_clock)
    events.quitting.add_listener(_fail_without_requests)
    events.quit.add_listener(_close_record)


def _prepare_run(environment: Environment, runner: Runner, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    _choose_loop(environment, open_loop=bool(options.rate))
    _share_out_the_rate(environment, options)
    body_count = max(user.body_count for user in _prediction_users(environment))
    PredictionUser.session = LoadSession(
        options, body_count, is_worker=isinstance(runner, WorkerRunner)
    )
    # Ends the run as its time would; on SIGTERM Locust writes no report.
    gevent.signal_handler(signal.SIGUSR1, runner.quit)
    if options.end_with_parent:
        gevent.spawn(_end_with_parent, os.getppid(), runner)
    # Locust counts --run-time from the event loop's cached clock, which stood still since the
    # imports: without this a run ends a second early.
    gevent.get_hub().loop.update_now()


def _choose_loop(environment: Environment, *, open_loop: bool) -> None:
    """Keep the users of one loop, where the file has both."""
    users = [
        user for user in environment.user_classes if issubclass(user, OpenLoopUser) is open_loop
    ]
    environment.user_classes = users or environment.user_classes


def _share_out_the_rate(environment: Environment, options: Namespace) -> None:
    """Give each process a user of the open loop, whatever --users says: it is the closed loop's."""
    if not options.rate:
        return
    processes = options.processes or 1
    options.num_users = max(options.num_users or 1, processes)
    for user in environment.user_classes:
        if issubclass(user, OpenLoopUser):
            user.fixed_count = processes


def _prediction_users(environment: Environment) -> list[type[PredictionUser]]:
    return [user for user in environment.user_classes if issubclass(user, PredictionUser)]


def _end_with_parent(parent: int, runner: Runner) -> None:
    """Quit when the command that started Locust is gone, killed: nobody else would end the run."""
    while os.getppid() == parent:
        gevent.sleep(1)
    runner.quit()


def _start_clock(**_: Any) -> None:
    PredictionUser.session.start_clock()


def _fail_without_requests(environment: Environment, **_: Any) -> None:
    """Make Locust's exit code 1 where no request came to an end, or less than half of those that
    were asked for: nothing was shown to work at this rate."""
    options = environment.parsed_options
    if not options or not options.headless or isinstance(environment.runner, WorkerRunner):
        return
    requests = environment.stats.total.num_requests
    target = (options.rate or 0.0) * (options.run_time or 0.0)
    if requests == 0:
        _log.error("no request was answered, so the run has failed")
        environment.process_exit_code = 1
    elif requests < LEAST_SHARE_SENT * target:
        _log.error(
            "%d requests came to an end of the %.0f that --rate asks for, so the run has failed: "
            "the load generator was too slow, or was cut off",
            requests,
            target,
        )
        environment.process_exit_code = 1


def _close_record(**_: Any) -> None:
    PredictionUser.session.close()
