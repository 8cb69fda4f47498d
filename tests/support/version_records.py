"""Records of versions as the ledger has them, for tests of pure decisions."""

from pathlib import Path

from vlserve.control.domain import EngineKind, Instance, LoadedVersion, State, VersionRecord
from vlserve.control.placement import Placement
from vlserve.runtime.manifest import Adopted, Manifest

UP, BUSY, STARTING = LoadedVersion(2, 0), LoadedVersion(2, 3), LoadedVersion(0, 0)
ONE = Instance("engine-0", "127.0.0.1", 8180, "first")


ALONE = Placement({"engine-0": "torchserve", "engine-1": "torchserve"})


def version(
    number: int, state: State, model: str = "tagger", engine: EngineKind = "torchserve"
) -> VersionRecord:
    return VersionRecord(
        model=model,
        version=number,
        archive=Path(f"{model}-{number}.mar"),
        sha256="0" * 64,
        manifest=Manifest.model_construct(model=model, version=number),
        state=state,
        reason="",
        was_ready=True,
        registered_at="then",
        changed_at="then",
        engine=engine,
    )


def adopted_manifest(former: str) -> Manifest:
    """Return what an archive says of itself that was adopted; ``former``: its name before."""
    members = ("handlers/adopted.py", "torchserve_handler.py", "MAR-INF/MANIFEST.json")
    return Manifest(
        model=former.lower(),
        version=1,
        task="adopted",
        family="torchserve",
        graphs={},
        adopted=Adopted(name=former, version="1.0", sha256="0" * 64, handler="h.py"),
        files=dict.fromkeys(members, "0" * 64),
    )


STABLE, READY = version(1, State.STABLE), version(2, State.READY)
