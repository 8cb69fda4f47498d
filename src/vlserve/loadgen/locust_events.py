"""What a load file does at the events of a Locust run: start, end, and the exit code."""

import logging
import os
import signal
from collections.abc import Callable
from typing import Any

import gevent
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import Runner, WorkerRunner

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
    fitting = [
        user for user in environment.user_classes if issubclass(user, OpenLoopUser) is open_loop
    ]
    environment.user_classes = fitting or environment.user_classes


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
    """Make Locust's exit code 1 where no request came to an end: nothing was shown to work."""
    options = environment.parsed_options
    is_judge = options and options.headless and not isinstance(environment.runner, WorkerRunner)
    if is_judge and environment.stats.total.num_requests == 0:
        _log.error("no request was answered, so the run has failed")
        environment.process_exit_code = 1


def _close_record(**_: Any) -> None:
    PredictionUser.session.close()
