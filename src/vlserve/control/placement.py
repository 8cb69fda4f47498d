"""Which engine runs a version, and on which instances. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from vlserve.control.domain import EngineKind, VersionRecord
from vlserve.errors import EngineNotRun


@dataclass(frozen=True)
class Placement:
    """Where the versions of one stack run.

    ``kinds``: instance -> its engine, for every instance of the stack, whether it answers or not.
    """

    kinds: Mapping[str, EngineKind]

    @property
    def default(self) -> EngineKind:
        """Return the engine of a version that is registered for none: TorchServe, where it runs."""
        return "torchserve" if "torchserve" in self.kinds.values() else "triton"

    def engine_of(self, record: VersionRecord) -> EngineKind:
        """Return the engine that runs a version: the one that it was registered for; where this
        stack does not run that, the one that it runs, because a version is to serve."""
        return record.engine if record.engine in self.kinds.values() else self.default

    def instead_of(self, record: VersionRecord) -> EngineKind | None:
        """Return the engine that a version was registered for where another runs it."""
        return None if self.engine_of(record) == record.engine else record.engine

    def is_on(self, instance: str, record: VersionRecord) -> bool:
        """Return whether the instance of this name is to hold a version that is loaded."""
        return self.kinds[instance] == self.engine_of(record)

    def refuse_unknown(self, engine: EngineKind | None) -> None:
        """Raise EngineNotRun where the stack does not run the engine that is asked for."""
        if engine is not None and engine not in self.kinds.values():
            runs = " and ".join(sorted(set(self.kinds.values())))
            raise EngineNotRun(
                f"this stack runs no {engine}, but {runs}: leave --engine out, or set engine.kind "
                f"to {engine} or both and start the stack anew"
            )
