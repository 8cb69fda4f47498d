"""The sections of the settings: gateway, engine and control. `vlserve.settings` reads them.

Descriptions appear in the generated reference: they say what the value means, with its unit.
"""

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from vlserve.processor import usable_cores
from vlserve.settings_values import (
    MAX_INT32,
    MAX_KEY_FILES,
    MAX_MIB,
    MAX_SECONDS,
    AllowedUrl,
    ApiKey,
    ArchiveSha256,
    HostName,
    OtlpUrl,
    Port,
    Seconds,
    WebhookUrl,
    is_loopback,
    listed,
    refuse_half_of_tls,
    with_host,
)
from vlserve.strict_numbers import StrictNumbers


class GatewaySettings(StrictNumbers):
    """The address that clients talk to, and what it lets in."""

    host: str = Field(
        default="127.0.0.1",
        description="Address that the gateway listens on; one that is not loopback needs api_keys.",
    )
    port: Port = Field(default=8080, description="Port that clients talk to.")
    metrics_port: Port = Field(
        default=8091,
        description="Port of the gateway's metrics for Prometheus. Called admin_port until 0.1.0, "
        "which is still read.",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="Address of the gateway's metrics. They ask for no key: one that is not "
        "loopback shows them to whoever reaches it, as a Prometheus outside of a pod must.",
    )
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode, BeforeValidator(listed)] = Field(
        default=(),
        description="Keys of which clients send one as X-Api-Key; none: no key is asked for. "
        "Required where host is not loopback. In the variable: one key, several with commas "
        "between them, or a JSON list.",
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="File in PEM, relative to project_dir, with the certificate that clients are "
        "shown, and behind it those that it follows from; goes with tls_key. None: plain HTTP.",
    )
    tls_key: Path | None = Field(
        default=None,
        description="File in PEM with the key of tls_certificate, without a password.",
    )
    max_body_bytes: int = Field(
        default=32 * 1024 * 1024,
        ge=1,
        le=MAX_INT32,
        description="Largest request body in bytes; a larger one is refused with 413.",
    )
    timeout_s: Seconds = Field(
        default=45.0,
        description="Seconds until a request without an answer gets 504; also how long `down` "
        "waits for running requests. One and a half times engine.response_timeout_s or more, or "
        "those that share a batch with a request that hangs get 504 too.",
    )
    try_timeout_s: Seconds = Field(
        default=10.0,
        gt=0,
        description="Seconds after which a request without an answer is asked of another instance "
        "as well, where there is one; the first answer counts. From two such tries in a row on, an "
        "instance gets no requests for a while. Longer than answers take under load.",
    )
    rate_limit_per_s: int | None = Field(
        default=None,
        ge=1,
        le=MAX_INT32,
        description="Requests a second that are let in, all clients together; more get 429. "
        "Null: no limit.",
    )
    retries: int = Field(
        default=3,
        ge=0,
        le=1000,
        description="How often a request is sent again, to another instance where there is one, "
        "after a lost connection, a 503 or a 507; up to 4 times more where an instance is Triton, "
        "a worker of which may die with the request.",
    )

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, values: Any) -> Any:
        """Read the name that a setting had in 0.1.0: the port had Envoy's admin page then."""
        if isinstance(values, dict) and "admin_port" in values:
            values = dict(values)
            port = values.pop("admin_port")
            values.setdefault("metrics_port", port)
        return values

    @model_validator(mode="after")
    def _keys_beyond_loopback(self) -> "GatewaySettings":
        if self.metrics_host != "localhost":
            ipaddress.ip_address(self.metrics_host)
        if not is_loopback(self.host) and not self.api_keys:
            raise ValueError(
                f"gateway.host {self.host} is not loopback: set gateway.api_keys, "
                "or keep the gateway on 127.0.0.1"
            )
        refuse_half_of_tls("gateway", self.tls_certificate, self.tls_key)
        return self


class EngineSettings(StrictNumbers):
    """The engine: its kind, its instances and how each serves a version."""

    kind: Literal["torchserve", "triton", "both"] = Field(
        default="torchserve",
        description="Which server runs the versions: torchserve, triton, or both, where each "
        "version says which (`vlserve register --engine`). Where Triton cannot run, `up` says why "
        "and takes TorchServe.",
    )
    instances: int = Field(
        default=1,
        ge=1,
        le=8,
        description="Engine processes, of each kind where there are both; each holds every loaded "
        "version of its kind.",
    )
    base_port: Port = Field(
        default=8180,
        description="First port of the engine: instance i takes base_port + 10 * i and the four "
        "ports after it.",
    )
    worker_base_port: Port = Field(
        default=9500,
        description="Number that names the sockets of TorchServe's workers: instance i counts from "
        "worker_base_port + 100 * i.",
    )
    workers: int = Field(
        default_factory=usable_cores,
        ge=1,
        le=1024,
        description="Worker processes of each version on each instance; by default, as many as "
        "this process may use processors (affinity, and the quota of a container).",
    )
    threads: int = Field(
        default=1, ge=1, le=1024, description="Threads that each worker computes on."
    )
    lone_threads: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Threads that a worker computes on for a request that comes alone: while no "
        "other worker of the stack is at work, on ONNX graphs and CPUs. Not more than "
        "engine.threads: as for any other. Each worker opens its graphs twice for that, with one "
        "copy of the weights.",
    )
    batch_size: int = Field(
        default=8,
        ge=1,
        le=MAX_INT32,
        description="Most requests that a worker answers in one batch.",
    )
    max_batch_delay_ms: int = Field(
        default=1,
        ge=0,
        le=MAX_INT32,
        description="Longest wait in milliseconds for a batch to fill, from its first request on. "
        "On TorchServe alone, which needs 1 or more: Triton waits for none.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="What Triton's workers compute on: auto (a GPU where onnxruntime's build has "
        "CUDA, else the CPU), cpu, or cuda, without which `up` refuses to start. TorchServe's "
        "workers always choose as auto does.",
    )
    queue_size: int = Field(
        default=100,
        ge=1,
        le=MAX_INT32,
        description="Requests of one version that wait in an instance; more get 503.",
    )
    load_timeout_s: Seconds = Field(
        default=30.0,
        description="Seconds until a version whose workers are not up is refused. Large models on "
        "slow disks, or many workers on few cores, need more.",
    )
    hang_timeout_s: Seconds = Field(
        default=20.0,
        gt=0,
        description="Seconds without a word from an instance, or from the gateway, after which it "
        "is killed and started anew.",
    )
    java_heap_mib: int = Field(
        default=3072,
        ge=256,
        le=MAX_MIB,
        description="Heap in MiB that TorchServe's Java may fill, and as much again outside of it; "
        "where it is full, Java ends and is started anew. It holds the bodies of waiting requests, "
        "of which the gateway lets in 2 GiB.",
    )
    worker_memory_mib: int = Field(
        default=8192,
        ge=512,
        le=MAX_MIB,
        description="MiB of data that each worker may hold (RLIMIT_DATA: its model and what it "
        "computes on); a request that needs more is answered with an error, and harms no other.",
    )
    response_timeout_s: int = Field(
        default=30,
        ge=1,
        le=MAX_SECONDS,
        description="Seconds that a worker may take for one batch before it is started anew; the "
        "answers of a version that was just loaded to its probes are waited for as long.",
    )

    @model_validator(mode="after")
    def _waits_on_torchserve(self) -> "EngineSettings":
        if self.max_batch_delay_ms == 0 and "torchserve" in self.kinds:
            raise ValueError(
                "engine.max_batch_delay_ms 0 is for engine.kind triton alone: TorchServe would "
                "wait 100 ms"
            )
        return self

    def on(self, kind: Literal["torchserve", "triton", "both"]) -> "EngineSettings":
        """Return these settings with another kind, and what that cannot do as by default."""
        update: dict[str, object] = {"kind": kind}
        if kind != "triton" and self.max_batch_delay_ms == 0:
            fields = EngineSettings.model_fields
            update["max_batch_delay_ms"] = fields["max_batch_delay_ms"].default
        if kind == "torchserve":
            update["device"] = "auto"
        return self.model_copy(update=update)

    @property
    def kinds(self) -> tuple[Literal["torchserve", "triton"], ...]:
        """The servers that run, TorchServe first."""
        return ("torchserve", "triton") if self.kind == "both" else (self.kind,)


class TrustSettings(StrictNumbers):
    """Whose archives are loaded, and whose pickled code is run."""

    mode: Literal["off", "warn", "enforce"] = Field(
        default="off",
        description="What signatures of archives are for, at `register` and before each load. off: "
        "nothing is verified. warn: `vlserve status` names what no key of trust.keys signed; what "
        "is signed wrong is refused. enforce: only what a key of trust.keys signed is loaded, and "
        "what has weight or can be gone back to.",
    )
    keys: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(listed)] = Field(
        default=(),
        max_length=MAX_KEY_FILES,
        description="PEM files of public keys (P-256, P-384 or P-521) whose signatures are "
        "trusted, relative to project_dir. They are read anew for each check: a key that is taken "
        "out of its file is revoked at once. In the variable: one, several with commas between "
        "them, or a JSON list.",
    )
    pickle: Annotated[tuple[ArchiveSha256, ...], NoDecode, BeforeValidator(listed)] = Field(
        default=(),
        description="sha256 of archives of torch-model-archiver, as `vlserve adopt` names them, "
        "whose files of weights may hold pickled code. Workers of all others read weights alone. "
        "In the variable: one, several with commas between them, or a JSON list.",
    )

    @model_validator(mode="after")
    def _keys_to_verify_with(self) -> "TrustSettings":
        if self.mode != "off" and not self.keys:
            raise ValueError(
                f"trust.mode {self.mode} needs trust.keys: PEM files of the public keys whose "
                "signatures are trusted"
            )
        return self


class TracesSettings(StrictNumbers):
    """Spans of requests for a collector of OpenTelemetry."""

    otlp_url: OtlpUrl | None = Field(
        default=None,
        description="Where a collector takes OTLP over HTTP, as http://127.0.0.1:4318/v1/traces; "
        "http alone. Null: there are no traces.",
    )
    sample_percent: float = Field(
        default=100.0,
        ge=0,
        le=100,
        description="Requests without a traceparent that are traced, in per cent; one with it says "
        "itself whether it is.",
    )

    @field_validator("otlp_url")
    @classmethod
    def _host_and_port(cls, url: str | None) -> str | None:
        return with_host(url)


class WebhookSettings(StrictNumbers):
    """Who is told of releases."""

    url: WebhookUrl | None = Field(
        default=None,
        description="Address (http or https) that is told when a release starts, advances, is "
        "promoted or rolled back; null: nobody. A release never waits for it.",
    )
    secret_file: Path | None = Field(
        default=None,
        description="File with the secret that signs what is sent: whsec_ and base64, which its "
        "owner alone can read. Null: webhook.secret in state_dir, which is made at the first "
        "start.",
    )
    ca_file: Path | None = Field(
        default=None,
        description="File of certificates in PEM, relative to project_dir, that the receiver's "
        "must follow from. Null: those of public authorities.",
    )

    @field_validator("url")
    @classmethod
    def _host_and_port(cls, url: str | None) -> str | None:
        return with_host(url)


class ControlSettings(StrictNumbers):
    """The control service: where it listens and how often it compares the world with the ledger."""

    host: str = Field(
        default="127.0.0.1",
        description="Address that the control service listens on; one that is not loopback needs "
        "tls_certificate, and a named key (`vlserve keys add`).",
    )
    port: Port = Field(default=8090, description="Port of the control service and its API page.")
    names: Annotated[tuple[HostName, ...], NoDecode, BeforeValidator(listed)] = Field(
        default=(),
        description="Host names, without a port, by which other machines reach the control "
        "service; loopback's names, and addresses where host is not loopback, are taken without. "
        "In the variable: one, several with commas between them, or a JSON list.",
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="File in PEM, relative to project_dir, with the certificate that the control "
        "service shows, and behind it those that it follows from; goes with tls_key. None: plain "
        "HTTP.",
    )
    tls_key: Path | None = Field(
        default=None,
        description="File in PEM with the key of tls_certificate, without a password.",
    )
    tick_s: Seconds = Field(
        default=1.0,
        description="Seconds between two comparisons of engine and gateway with the ledger.",
    )
    drain_timeout_s: Seconds = Field(
        default=60.0,
        description="Seconds that `unload` waits for requests of the version that are under way.",
    )
    loads_at_once: int = Field(
        default=4,
        ge=1,
        description="Loads that users asked for, by `register` or by releasing a retired version, "
        "at one time; 64 at the most are received or wait for their turn.",
    )
    max_archive_bytes: int = Field(
        default=8 * 1024**3, ge=1, description="Largest archive in bytes that `register` takes."
    )
    allowed_urls: Annotated[tuple[AllowedUrl, ...], NoDecode, BeforeValidator(listed)] = Field(
        default=(),
        description="Addresses below which `POST /torchserve/models?url=…` may fetch archives, "
        "each a folder with a slash at its end: https://models.example/team/, "
        "file:///srv/archives/. None: archives in the model store alone. In the variable: one, "
        "several with commas between them, or a JSON list.",
    )

    @model_validator(mode="after")
    def _safe_beyond_loopback(self) -> "ControlSettings":
        refuse_half_of_tls("control", self.tls_certificate, self.tls_key)
        if not is_loopback(self.host) and self.tls_certificate is None:
            raise ValueError(
                f"control.host {self.host} is not loopback, and keys would cross the network in "
                "clear text: set control.tls_certificate and tls_key (docs/access.md has a command "
                "that makes them), or keep the control service on 127.0.0.1"
            )
        return self
