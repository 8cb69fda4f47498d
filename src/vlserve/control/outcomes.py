"""What came of a change that a user asked for."""

from dataclasses import dataclass

from vlserve.control.domain import EngineKind, Signer, State


@dataclass(frozen=True)
class Registration:
    """The outcome of a registration. ``signer``: see VersionRecord.

    ``already_registered``: the same bytes were there before, and nothing was loaded. ``retuned``:
    another tuning, or none, is kept for its next load. ``untuned``: why it could not be loaded as
    tuned; it was loaded with the engine's settings, and its tuning dropped. ``restored``: it was
    out of the engine though clients may ask for it, and is loaded again. ``engine``: the one that
    runs it.
    """

    model: str
    version: int
    state: State
    already_registered: bool
    retuned: bool = False
    untuned: str = ""
    restored: bool = False
    engine: EngineKind = "torchserve"
    signer: Signer | None = None


@dataclass(frozen=True)
class Deletion:
    """The outcome of a deletion. ``rollback_to``: where a rollback of the model goes from now on;
    None: nowhere."""

    model: str
    version: int
    state: State
    freed_bytes: int
    rollback_to: int | None


@dataclass(frozen=True)
class TrafficChange:
    """The outcome of a release or a rollback: ``version`` has all traffic, ``previous`` had it
    before. ``already_released``: it had the traffic before, and nothing was done. ``unrecorded``:
    why the ledger does not know it yet; empty where it does."""

    model: str
    version: int
    previous: int | None
    already_released: bool = False
    unrecorded: str = ""
