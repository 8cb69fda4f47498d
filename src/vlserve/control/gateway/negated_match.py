"""A regular expression that matches everything but some words."""

import re
from collections.abc import Collection


def negated_pattern(words: Collection[str]) -> str:
    """Return an RE2 pattern that matches every string without line breaks but ``words``.

    RE2 has no lookahead, which would say it in a line. So at each letter that leads away from all
    words, the pattern takes anything.
    """
    nexts = sorted({word[0] for word in words if word})
    ways = [re.escape(letter) + negated_pattern(_after(letter, words)) for letter in nexts]
    others = "[^" + "".join(map(re.escape, nexts)) + "].*" if nexts else ".+"
    end = [] if "" in words else [""]
    return "(?:" + "|".join([*ways, others, *end]) + ")"


def _after(letter: str, words: Collection[str]) -> set[str]:
    return {word[1:] for word in words if word.startswith(letter)}
