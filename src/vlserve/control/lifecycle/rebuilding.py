"""A lost or damaged ledger is made anew: versions from the archives, traffic from the gateway's
last routes. History, tunings and rollouts are lost."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vlserve.control.domain import EngineKind, Key, State
from vlserve.control.gateway.last_routes import LastRoute, last_engines, last_routes
from vlserve.control.store.database import LEDGER
from vlserve.control.store.kept_archives import kept_archives, knows_versions, refuse_open
from vlserve.control.store.ledger import Ledger
from vlserve.errors import ArchiveError, ControlError, LedgerDamaged
from vlserve.runtime.archive import file_sha256, verify_archive
from vlserve.runtime.manifest import Manifest
from vlserve.settings import Settings

_NO_ROUTE = LastRoute()


@dataclass(frozen=True)
class _Kept:
    """An archive of the store that can be served."""

    manifest: Manifest
    archive: Path
    sha256: str

    @property
    def key(self) -> Key:
        return self.manifest.model, self.manifest.version


def rebuild_ledger(settings: Settings) -> Iterator[str]:
    """Make the ledger anew, and yield a line for each thing that was done. What was there is moved
    aside.

    A rollout that was under way is not: its stable version gets all traffic.

    Raises:
        ControlError: the ledger is whole, or a control service has it open.
    """
    store = settings.model_store
    refuse_open(store)  # before anything is moved
    try:
        whole = knows_versions(store)
    except LedgerDamaged:
        whole = False
    if whole:
        raise ControlError(f"{store / LEDGER} can be read and knows versions: nothing to rebuild")
    archives: list[_Kept] = []
    for archive in kept_archives(store):
        try:
            manifest = verify_archive(archive)
        except (ArchiveError, OSError) as error:
            yield f"left out: {archive}: {error}"
            continue
        if (manifest.model, str(manifest.version)) != archive.parts[-3:-1]:
            yield f"left out: {archive} is {manifest.model} {manifest.version} by its manifest"
            continue
        archives.append(_Kept(manifest, archive, file_sha256(archive)))
    yield from _moved_aside(store)
    with Ledger(store, anew=True) as ledger, ledger.transaction():
        # Of what no instance held, nobody knows the engine.
        default = dict.fromkeys((each.key for each in archives), settings.engine.kinds[0])
        engines = {**default, **last_engines(settings)}
        yield from _enter(ledger, archives, last_routes(settings), engines)


def _moved_aside(store: Path) -> Iterator[str]:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for ending in ("", "-wal", "-shm"):
        file = store / f"{LEDGER}{ending}"
        if file.exists():
            aside = store / f"{LEDGER}.{stamp}{ending}"
            file.replace(aside)
            yield f"{file.name} is kept as {aside.name}"


def _enter(
    ledger: Ledger,
    archives: list[_Kept],
    routes: Mapping[str, LastRoute],
    engines: Mapping[Key, EngineKind],
) -> Iterator[str]:
    for model in dict.fromkeys(each.manifest.model for each in archives):
        route = routes.get(model, _NO_ROUTE)
        of_model = [each for each in archives if each.manifest.model == model]
        numbers = [each.manifest.version for each in of_model]
        stable = route.stable if route.stable in numbers else None
        for each in of_model:
            loaded = each.manifest.version in route.versions
            state = State.READY if loaded else State.RETIRED
            ledger.enter(each.manifest, each.archive, each.sha256, state, engines[each.key])
        if stable is not None:
            ledger.release(model, stable, {stable: 100}, rebuilt_from=dict(route.weights))
        yield f"{model}: {_numbers(numbers)}, {_traffic(model, stable, route)}"


def _traffic(model: str, stable: int | None, route: LastRoute) -> str:
    if stable is None:
        return f"without traffic: `vlserve release {model} VERSION --now` gives it to one"
    if len(route.weights) > 1:
        return f"all traffic to {stable}: the rollout that was under way is over"
    return f"all traffic to {stable}, as before"


def _numbers(versions: list[int]) -> str:
    word = "version" if len(versions) == 1 else "versions"
    return f"{word} {', '.join(map(str, versions))}"
