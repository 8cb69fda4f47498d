"""Where each engine instance of the stack listens, and the folder that it runs in."""

from dataclasses import dataclass
from pathlib import Path

from vlserve.control.domain import EngineKind
from vlserve.settings import Settings
from vlserve_worker import last_words


@dataclass(frozen=True)
class Endpoint:
    """One engine instance: its loopback ports, and the folder that it runs in.

    Triton listens on the inference, metrics and gRPC management ports alone.
    """

    name: str
    folder: Path
    inference_port: int
    management_port: int
    metrics_port: int
    grpc_inference_port: int
    grpc_management_port: int
    worker_port: int
    max_body_bytes: int
    """Of a request, as the gateway lets it in."""
    kind: EngineKind = "torchserve"
    host: str = "127.0.0.1"

    @property
    def key_file(self) -> Path:
        """The tokens of this start of the engine, in the folder that it runs in."""
        return self.folder / "key_file.json"

    @property
    def pid_file(self) -> Path:
        """The process id of this start of the engine; Triton's alone."""
        return self.folder / "server.pid"

    @property
    def store(self) -> Path:
        """What the engine makes of registered archives: TorchServe copies them to here, for Triton
        they are unpacked, and its model repository lies here too."""
        return self.folder / "store"

    @property
    def logs(self) -> Path:
        """Where TorchServe writes model_log.log, which must carry what workers print at INFO."""
        return self.folder / "logs"

    def threads_file(self, model: str, version: int) -> Path:
        """Where a worker reads how many threads it has: TorchServe gives all workers the same
        environment."""
        return self.folder / "threads" / f"{model}-{version}"

    def failed_load(self, model: str, version: int) -> Path:
        """Where a worker of TorchServe writes why it cannot load the version."""
        return self.folder / last_words.FOLDER / f"{model}-{version}"

    def write_threads(self, model: str, version: int, threads: int) -> None:
        file = self.threads_file(model, version)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{threads}\n", encoding="utf-8")


def endpoints(settings: Settings) -> tuple[Endpoint, ...]:
    """Return every engine instance of this stack, TorchServe's first."""
    engine = settings.engine
    return tuple(
        Endpoint(
            name=f"engine-{index}",
            folder=settings.state_dir / f"engine-{index}",
            inference_port=engine.base_port + 10 * index,
            management_port=engine.base_port + 10 * index + 1,
            metrics_port=engine.base_port + 10 * index + 2,
            grpc_inference_port=engine.base_port + 10 * index + 3,
            grpc_management_port=engine.base_port + 10 * index + 4,
            worker_port=engine.worker_base_port + 100 * index,
            max_body_bytes=settings.gateway.max_body_bytes,
            kind=kind,
        )
        for index, kind in enumerate(kind for kind in engine.kinds for _ in range(engine.instances))
    )
