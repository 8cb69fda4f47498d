"""A recipe's graphs before their export, run like exported ones."""

from dataclasses import dataclass

import torch

from vlserve.exporter.parity import run_eager
from vlserve.exporter.recipe import GraphPlan
from vlserve.runtime.types import Arrays


@dataclass(frozen=True)
class EagerBackend:
    """Answers by the network of a plan; see `vlserve.runtime.types.Backend`."""

    plan: GraphPlan

    def run(self, inputs: Arrays) -> Arrays:
        return run_eager(self.plan, {name: torch.from_numpy(x) for name, x in inputs.items()})
