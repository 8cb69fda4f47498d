"""How the callers of a release are split: by weight, always the same way, and monotone."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import pairwise
from urllib.parse import urlsplit

from scipy.stats import chisquare

from vlserve.control.domain import ModelRoute

WEIGHTS = (5, 25, 50, 100)
P_AT_LEAST = 0.001
P_BY_CHANCE_AT_LEAST = 1e-6
"""Without a key each run draws anew: one in a thousand good ones would be below the other."""
STABLE, CANDIDATE = 1, 2
SALTS = {"tagger": "tagger-release-1", "matcher": "matcher-release-1", "captioner": "caption-7"}
"""Model -> the salt of its release."""

_CLIENTS = 4

Route = Callable[[Sequence[ModelRoute]], None]
"""Puts models in force at the gateway."""


@dataclass(frozen=True)
class Share:
    """Callers, or requests without a key, of one model at one weight."""

    model: str
    weight: int
    requests: int
    on_candidate: int

    @property
    def p(self) -> float:
        """Of a split at least so far from its weight, if each were drawn by it."""
        if self.weight in (0, 100):
            return float(self.on_candidate == self.requests * self.weight // 100)
        expected = self.requests * self.weight / 100
        counts = [self.on_candidate, self.requests - self.on_candidate]
        return float(chisquare(counts, [expected, self.requests - expected]).pvalue)


def released(weights: Mapping[str, int], salts: Mapping[str, str]) -> list[ModelRoute]:
    """Return the routes of models in a rollout. ``weights``: model -> the candidate's weight."""
    versions = (STABLE, CANDIDATE)
    return [
        ModelRoute(model, {CANDIDATE: weight, STABLE: 100 - weight}, versions, salts[model])
        for model, weight in weights.items()
    ]


def on_candidate(url: str, model: str, keys: Sequence[str | None]) -> set[int]:
    """Send a request for each of ``keys``; return the places of those on the candidate."""

    def ask(places: Sequence[int]) -> list[int]:
        address = urlsplit(url)
        on_candidate = []
        with closing(HTTPConnection(str(address.hostname), address.port, timeout=60.0)) as http:
            for place in places:
                key = keys[place]
                headers = {} if key is None else {"X-Sticky-Key": key}
                http.request("POST", f"/predictions/{model}", b"x", headers)
                reply = http.getresponse()
                reply.read()
                if reply.status != 200:
                    raise RuntimeError(f"{model} answered {reply.status}")
                if reply.headers["x-model-version"] == str(CANDIDATE):
                    on_candidate.append(place)
        return on_candidate

    parts = [range(start, len(keys), _CLIENTS) for start in range(_CLIENTS)]
    with ThreadPoolExecutor(_CLIENTS) as pool:
        return {place for part in pool.map(ask, parts) for place in part}


@dataclass(frozen=True)
class SplitResult:
    """``met``: model and weight -> the callers that met the candidate."""

    keyed: Sequence[Share]
    keyless: Sequence[Share]
    met: Mapping[tuple[str, int], set[int]]
    disturbed: int
    """Callers of one model whose version changed when another model's weight did."""

    @property
    def left(self) -> int:
        """Callers that left the candidate again as its weight rose."""
        rises = [(model, *pair) for model in SALTS for pair in pairwise(WEIGHTS)]
        return sum(len(self.met[model, low] - self.met[model, high]) for model, low, high in rises)

    @property
    def in_both(self) -> Share:
        """Callers on both candidates at 50 %: half of those on the first, if salts mix well."""
        first, other = (self.met[model, 50] for model in list(SALTS)[:2])
        return Share("both", 50, len(first), len(first & other))

    def problems(self) -> list[str]:
        wrong = [each for each in self.keyed if each.p < P_AT_LEAST]
        wrong += [each for each in self.keyless if each.p < P_BY_CHANCE_AT_LEAST]
        problems = [f"{each} is not by weight: p {each.p:.2g}" for each in wrong]
        if self.left:
            problems.append(f"{self.left} callers left the candidate as its weight rose")
        if self.disturbed:
            problems.append(f"{self.disturbed} callers were moved by another model's release")
        if self.in_both.p < P_AT_LEAST:
            problems.append(f"releases meet the same callers: {self.in_both}")
        return problems


def measure(url: str, route: Route, callers: int) -> SplitResult:
    """Ask every model at every weight, and look whether releases touch each other."""
    keys = [f"caller-{number}" for number in range(callers)]
    keyed_shares, keyless_shares, hits = [], [], {}
    for weight in WEIGHTS:
        route(released(dict.fromkeys(SALTS, weight), SALTS))
        for model in SALTS:
            hits[model, weight] = on_candidate(url, model, keys)
            keyed_shares.append(Share(model, weight, callers, len(hits[model, weight])))
        by_chance = on_candidate(url, next(iter(SALTS)), [None] * callers)
        keyless_shares.append(Share(next(iter(SALTS)), weight, callers, len(by_chance)))
    first, *others = SALTS
    route(released({first: 25, **dict.fromkeys(others, 100)}, SALTS))
    changes = on_candidate(url, first, keys) ^ hits[first, 25]
    return SplitResult(keyed_shares, keyless_shares, hits, len(changes))
