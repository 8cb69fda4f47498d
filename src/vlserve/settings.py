"""Every path, port and limit. Sources, strongest first: VLSERVE_* variables,
serving_config/vlserve.yaml, the defaults below.

Nested names use two underscores: ``VLSERVE_GATEWAY__PORT=8088``.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from vlserve.errors import SettingsError
from vlserve.project import LayeredFolder, find_project_dir, project_file, project_folder
from vlserve.runtime.errors import MAX_WRONG_FIELDS, printable, shortened
from vlserve.settings_sections import (
    ControlSettings,
    EngineSettings,
    GatewaySettings,
    TracesSettings,
    TrustSettings,
    WebhookSettings,
)
from vlserve.tls import TlsFiles
from vlserve.yaml_files import read_mapping

STACK_VARIABLE = "VLSERVE_STACK"
"""Environment variable of every process of a stack: its state_dir."""
CONFIG_FOLDER = "serving_config"
SETTINGS_FILE = "vlserve.yaml"

NEIGHBOURS_IN_TIME = 1.5
"""gateway.timeout_s over engine.response_timeout_s from which the neighbours of what hangs
are answered: after the batch, it is tried once more alone, for a third of that time."""

_SOCKET_PATH_BYTES = 80  # of the 107 that the kernel allows; TorchServe adds its own file names


class Settings(BaseSettings):
    """All settings of one stack. Two stacks on one machine differ in state_dir and ports."""

    model_config = SettingsConfigDict(
        env_prefix="VLSERVE_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    project_dir: Path = Field(
        default_factory=find_project_dir,
        description="Folder with the project's export/, handlers/, serving_config/ and loadtest/, "
        "whose files win over the packaged ones. Default: the nearest folder upwards that "
        "`vlserve init` made or that is a checkout, else the current folder.",
    )
    state_dir: Path = Field(
        default=Path(".vlserve"),
        description="Folder of rendered configuration, logs, sockets and engine stores, relative "
        "to project_dir; safe to delete when the stack is down. `model_store` lies elsewhere.",
    )
    model_store: Path = Field(
        default=Path("model_store"),
        description="Folder of the archives and the ledger, relative to project_dir; what a "
        "backup needs.",
    )
    gateway: GatewaySettings = Field(
        default=GatewaySettings(), description="The address that clients talk to."
    )
    engine: EngineSettings = Field(
        default=EngineSettings(), description="How the engine serves each version."
    )
    control: ControlSettings = Field(default=ControlSettings(), description="The control service.")
    trust: TrustSettings = Field(
        default=TrustSettings(), description="Whose archives are loaded, and whose pickled code."
    )
    traces: TracesSettings = Field(
        default=TracesSettings(), description="Spans of requests, for a collector."
    )
    webhook: WebhookSettings = Field(
        default=WebhookSettings(), description="Who is told of releases."
    )

    @field_validator("state_dir", "model_store", mode="before")
    @classmethod
    def _no_empty_path(cls, value: object) -> object:
        if value == "":
            raise ValueError("an empty path would be the project folder itself")
        if isinstance(value, str) and value.startswith("~"):
            raise ValueError(f"{value!r} is not expanded: write the path of the home folder")
        return value

    @model_validator(mode="after")
    def _absolute_paths(self) -> "Settings":
        for name in ("state_dir", "model_store"):
            path = self.project_dir / getattr(self, name)
            try:
                object.__setattr__(self, name, path.resolve())
            except (RuntimeError, ValueError) as error:  # a loop of links; a NUL
                raise ValueError(f"{name} {str(path)!r} is no path: {error}") from error
        keys = tuple(self.project_dir / key for key in self.trust.keys)
        object.__setattr__(self, "trust", self.trust.model_copy(update={"keys": keys}))
        return self

    @cached_property
    def config_dir(self) -> Path:
        """The project's own serving_config/, which need not hold every file: see `config_file`."""
        return self.project_dir / CONFIG_FOLDER

    def config_file(self, name: str) -> Path:
        """Return a file of serving_config/: the project's own, else the packaged one."""
        return self.folder(CONFIG_FOLDER) / name

    def folder(self, name: str) -> LayeredFolder:
        """Return export/, handlers/, serving_config/ or loadtest/ of the project, with the packaged
        files behind its own."""
        return project_folder(name, self.project_dir)

    @cached_property
    def control_key_file(self) -> Path:
        """The file with the control service's key, which the owner of the stack alone can read."""
        return self.state_dir / "control.key"

    @cached_property
    def answer_log(self) -> Path:
        """The file where handlers log what they answered, of every engine instance."""
        return self.state_dir / "logs" / "answers.jsonl"

    @cached_property
    def webhook_secret_file(self) -> Path:
        """The file with the secret that signs what the webhook is told."""
        return self.project_dir / (self.webhook.secret_file or self.state_dir / "webhook.secret")

    @cached_property
    def verified_archives(self) -> Path:
        """Where engines read archives while signatures are verified: copies, as they are loaded."""
        return self.state_dir / "verified"

    @cached_property
    def socket_dir(self) -> Path:
        """Where sockets are: beside the rest of the state, or, where that path is too long for a
        socket, in a private folder named after it."""
        inside = self.state_dir / "run"
        if len(os.fsencode(inside)) <= _SOCKET_PATH_BYTES:
            return inside
        digest = hashlib.sha256(os.fsencode(self.state_dir)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"vlserve-{os.getuid()}-{digest}"

    @cached_property
    def control_url(self) -> str:
        return _local_url(self.control.host, self.control.port, self.control_tls)

    @cached_property
    def gateway_url(self) -> str:
        return _local_url(self.gateway.host, self.gateway.port, self.gateway_tls)

    @cached_property
    def control_tls(self) -> TlsFiles | None:
        """The control service's certificate; None where it speaks plain HTTP."""
        return self._tls("control", self.control.tls_certificate, self.control.tls_key)

    @cached_property
    def gateway_tls(self) -> TlsFiles | None:
        """The gateway's certificate; None where it speaks plain HTTP."""
        return self._tls("gateway", self.gateway.tls_certificate, self.gateway.tls_key)

    def _tls(self, section: str, certificate: Path | None, key: Path | None) -> TlsFiles | None:
        if certificate is None or key is None:
            return None
        return TlsFiles(self.project_dir / certificate, self.project_dir / key, section)

    def doubts(self) -> list[str]:
        """Return what works, but not as well as it could, a line each."""
        least_s = NEIGHBOURS_IN_TIME * self.engine.response_timeout_s
        if self.gateway.timeout_s >= least_s:
            return []
        return [
            f"gateway.timeout_s ({self.gateway.timeout_s:g}) is less than {NEIGHBOURS_IN_TIME:g} "
            f"times engine.response_timeout_s ({self.engine.response_timeout_s}): those that share "
            f"a batch with a request that hangs get 504; set gateway.timeout_s to {least_s:g}"
        ]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        if STACK_VARIABLE in os.environ:  # a process of a stack: `up` gave it every setting
            return init_settings, env_settings
        file = project_file(f"{CONFIG_FOLDER}/{SETTINGS_FILE}")
        entries = {name: value for name, value in read_mapping(file).items() if value is not None}
        return init_settings, env_settings, InitSettingsSource(settings_cls, entries)


def _local_url(host: str, port: int, tls: TlsFiles | None) -> str:
    """Return the address by which this machine reaches a server that listens on ``host``."""
    own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{'https' if tls else 'http'}://{f'[{own}]' if ':' in own else own}:{port}"


class SettingsAsGiven(Settings):
    """Settings that no variable and no file has a part in."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def load_settings() -> Settings:
    """Read the settings of this environment.

    Raises:
        SettingsError: names each wrong entry, and the variable or the file that has it.
    """
    try:
        _refuse_sections_that_are_no_json()
        return Settings()
    except ValidationError as error:
        items = error.errors(include_url=False, include_input=False)
        wrong = [f"{_source(item['loc'])}: {item['msg']}" for item in items[:MAX_WRONG_FIELDS]]
        more = len(items) - len(wrong)
        wrong += [f"and {more} more"] if more else []
        raise SettingsError(f"settings cannot work: {'; '.join(wrong)}") from error


def _refuse_sections_that_are_no_json() -> None:
    """Refuse a variable that names a whole section and holds no JSON object."""
    sections = {f"VLSERVE_{name}".upper() for name in ("gateway", "engine", "control", "trust")}
    for name, value in os.environ.items():
        if name.upper() not in sections:
            continue
        try:
            is_object = isinstance(json.loads(value), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise SettingsError(
                f"{name} must be a JSON object, as in {name}='{{\"port\": 8088}}'; one setting "
                f"alone is set as {name}__PORT=8088"
            )


def _source(place: Sequence[int | str]) -> str:
    """Return the name of a setting, and the variables or the file that gave its value."""
    parts = [part for part in place if isinstance(part, str)]
    full = f"VLSERVE_{'__'.join(parts)}".upper()
    variables = [name for name in os.environ if f"{name}__".upper().startswith(f"{full}__")] or [
        name for name in os.environ if full.startswith(f"{name}__".upper())
    ]
    where = ", ".join(variables) or project_file(f"{CONFIG_FOLDER}/{SETTINGS_FILE}")
    return f"{printable(shortened('.'.join(map(str, place)))) or 'settings'} ({where})"
