"""The command-line options that all files in loadtest/ share.

Values stay strings and numbers: with --processes Locust sends them to its workers, and it cannot
send a Path.
"""

import argparse

from locust.argument_parser import LocustArgumentParser


def add_load_options(
    parser: LocustArgumentParser, *, rate: float | None = None, sticky_share: float = 0.0
) -> argparse._ArgumentGroup:
    """Add the shared options to Locust's parser, and return their group for a file's own ones.

    A run reads them once, at its start, so Locust's web page does not offer them: it offers only
    what is added to the parser itself.

    Args:
        parser: Locust's.
        rate: Default of --rate.
        sticky_share: Default of --sticky-share.
    """
    group: argparse._ArgumentGroup = parser.add_argument_group("vlserve")
    add = group.add_argument
    add("--model", default="tagger", help="Name of the model.")
    add("--data", help='Dataset of the requests, JSON lines {"id", "img", "text"}.')
    add("--archive", help="Archive whose probes, varied, are the requests; for any task.")
    add("--rate", type=float, default=rate, help="Open loop: requests per second.")
    add(
        "--max-in-flight",
        type=int,
        default=500,
        help="Open loop: with so many requests unanswered, those that come due are not sent.",
    )
    add(
        "--sticky-share",
        type=float,
        default=sticky_share,
        help="Share of the requests with an X-Sticky-Key, 0 to 1.",
    )
    add("--request-timeout", type=float, default=35.0, help="Time limit of a request in seconds.")
    add("--record", help="File for one JSON line per request.")
    add("--end-with-parent", action="store_true", help="End when the parent process has ended.")
    return group
