"""Which way of quantising each graph gives the fastest archive that passes the gate.

A plan says of each graph which method, and which nodes it leaves out. Plans are asked fastest
first. One that fails is followed by the same with more of its nodes in float, and by those in
which one graph has the next slower method; each waits for its turn by its own measured speed.
Nodes are left in float 1, 2, 4, … groups at a time in two orders: those that spoil the outputs
most alone, and those that come first in their graph, whose errors all that follows takes along.
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Literal

from vlserve.errors import ExportError
from vlserve.quantize.gate import Verdict
from vlserve.quantize.methods import Method
from vlserve.quantize.speed import Clock
from vlserve.quantize.variants import (
    GraphVariants,
    Guilt,
    Variant,
    excluded_in,
    guilt_table,
)

FASTER = 1.05
"""What is not so much faster than fp32 is not worth a change of answers."""
MOST_PLANS = 16
"""Asked of the gate until the export is refused."""

Chosen = Mapping[str, Variant]
"""By graph."""
Order = Literal["worst", "first"]
Methods = tuple[tuple[str, Method | None], ...]
Judge = Callable[[Chosen], Verdict]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """``left_out``: so many groups stay in float, in that ``order``."""

    chosen: Chosen
    left_out: int = 0
    order: Order | None = None

    @property
    def methods(self) -> Methods:
        return tuple((name, variant.method) for name, variant in sorted(self.chosen.items()))

    def faster(self, weights: Mapping[str, float]) -> float:
        """Return how much faster all graphs are together: fp32's time over this plan's.
        ``weights``: of each graph fp32's share of the time."""
        return sum(weights.values()) / sum(
            weight / self.chosen[name].faster for name, weight in weights.items()
        )


@dataclass(frozen=True)
class Found:
    """``plans_asked``: so many were put to the gate, this one last."""

    chosen: Chosen
    verdict: Verdict
    plans_asked: int


def search(
    graphs: Mapping[str, GraphVariants],
    weights: Mapping[str, float],
    candidates: Mapping[str, list[Variant]],
    judge: Judge,
    clock: Clock,
    say: Say,
) -> Found:
    """Return the first plan that passes. ExportError with a table of the worst nodes where none
    does, or without one where none is faster than fp32."""
    rankings = {
        name: _faster_first(graphs[name], of_graph) for name, of_graph in candidates.items()
    }
    first = Plan({name: variants[0] for name, variants in rankings.items()})
    if first.faster(weights) < FASTER:
        raise ExportError(
            f"int8 makes the archive {first.faster(weights):.2f} times as fast as fp32, and "
            f"{FASTER} times is the least: {_speeds(candidates)}; export in fp32"
        )
    order = count()
    queue = [(-first.faster(weights), next(order), first)]
    methods_so_far = {first.methods}
    guilty: dict[Methods, list[Guilt]] = {}
    best: Verdict | None = None
    for attempts in range(1, MOST_PLANS + 1):
        if not queue:
            break
        _, _, plan = heapq.heappop(queue)
        verdict = judge(plan.chosen)
        say(f"{describe(plan.chosen)}: {verdict}" + ("" if verdict.passed else ", refused"))
        if verdict.passed:
            return Found(plan.chosen, verdict, attempts)
        if best is None or verdict.agreed > best.agreed:
            best = verdict
        if plan.methods not in guilty:
            say("trying nodes alone, to see which spoil the answers")
            guilty[plan.methods] = _guilt(graphs, plan)
        followers = _with_more_left_out(graphs, plan, guilty[plan.methods], clock)
        if plan.left_out == 0:
            slower = _with_slower_methods(rankings, plan)
            followers += [each for each in slower if each.methods not in methods_so_far]
            methods_so_far |= {each.methods for each in slower}
        for follower in followers:
            faster = follower.faster(weights)
            if faster >= FASTER:
                heapq.heappush(queue, (-faster, next(order), follower))
    raise ExportError(
        f"int8 changes the answers too much: at best {best}; at least 99 % of the first answers "
        "(or all but one) must agree, and the metric may fall by 0.5 points or one item. "
        "No archive was written. The worst nodes:\n"
        + guilt_table(_worst_first(guilty[first.methods]))
    )


def describe(choice: Chosen) -> str:
    """Return each graph's method and how many nodes it leaves out."""
    return ", ".join(
        f"{name} {variant.method or 'float'}"
        + (f" without {len(variant.excluded)} nodes" if variant.excluded else "")
        for name, variant in choice.items()
    )


def _faster_first(graph: GraphVariants, candidates: list[Variant]) -> list[Variant]:
    """Return the variants that are worth it, the fastest first; then the fp32 graph."""
    faster = [variant for variant in candidates if variant.faster >= FASTER]
    return [*sorted(faster, key=lambda variant: -variant.faster), graph.own]


def _guilt(graphs: Mapping[str, GraphVariants], plan: Plan) -> list[Guilt]:
    """Return guilty nodes in the graphs' order."""
    return [
        guilt
        for name, variant in plan.chosen.items()
        if variant.method is not None
        for guilt in graphs[name].guilt(variant.method)
    ]


def _worst_first(guilty: list[Guilt]) -> list[Guilt]:
    return sorted(guilty, key=lambda guilt: -guilt.error)


def _with_more_left_out(
    graphs: Mapping[str, GraphVariants], plan: Plan, guilty: list[Guilt], clock: Clock
) -> list[Plan]:
    """Leave out twice as many groups in the plan's order, the first group of both orders where none
    is left out; none where that would leave nothing to quantise."""
    more = max(1, 2 * plan.left_out)
    if more >= len(guilty):
        return []
    orders: Mapping[Order, list[Guilt]] = {"worst": _worst_first(guilty), "first": guilty}
    plans = [
        _leaving_out(graphs, plan, groups[:more], order, clock)
        for order, groups in orders.items()
        if plan.order in (None, order)
    ]
    return [each for each in plans if each is not None]


def _leaving_out(
    graphs: Mapping[str, GraphVariants],
    plan: Plan,
    groups: list[Guilt],
    order: Order,
    clock: Clock,
) -> Plan | None:
    """Return a plan with nodes left out; None where a graph does not run so."""
    exclusions = excluded_in(groups)
    choice: dict[str, Variant] = {}
    for name, variant in plan.chosen.items():
        if variant.method is None or name not in exclusions:
            choice[name] = variant
            continue
        files = graphs[name].without(variant.method, exclusions[name], clock)
        if files is None:
            return None
        choice[name] = files
    return Plan(choice, len(groups), order)


def _with_slower_methods(rankings: Mapping[str, list[Variant]], plan: Plan) -> list[Plan]:
    """Return plans in which one graph's method is the next slower one; the last is fp32."""
    return [
        Plan({**plan.chosen, name: variants[variants.index(plan.chosen[name]) + 1]})
        for name, variants in rankings.items()
        if plan.chosen[name] != variants[-1]
    ]


def _speeds(candidates: Mapping[str, list[Variant]]) -> str:
    lines = [
        f"{name} {variant.method} {variant.faster:.2f}x"
        for name, variants in candidates.items()
        for variant in variants
    ]
    return ", ".join(lines) or "no node can be quantised"
