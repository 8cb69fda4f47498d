"""Every path, port and limit. Sources, strongest first: VLSERVE_* variables,
serving_config/vlserve.yaml, the defaults below.

Nested names use two underscores: ``VLSERVE_GATEWAY__PORT=8088``.
"""

import ipaddress
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from vlserve.errors import SettingsError
from vlserve.runtime.errors import wrong_fields

Port = Annotated[int, Field(ge=1, le=65535)]


def _project_dir() -> Path:
    return Path(os.environ.get("VLSERVE_PROJECT_DIR") or Path(__file__).parents[2])


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GatewaySettings(_Section):
    """The address that clients talk to, and what it lets in."""

    host: str = "127.0.0.1"
    port: Port = 8080
    admin_port: Port = 8091
    api_keys: tuple[str, ...] = ()
    """Required on any address that is not loopback; sent by clients as X-Api-Key."""
    max_body_bytes: int = 32 * 1024 * 1024
    timeout_s: float = 30.0
    rate_limit_per_s: int | None = None
    retries: int = 3

    @model_validator(mode="after")
    def _keys_beyond_loopback(self) -> "GatewaySettings":
        loopback = self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        if not loopback and not self.api_keys:
            raise ValueError(
                f"gateway.host {self.host} is not loopback: set gateway.api_keys, "
                "or keep the gateway on 127.0.0.1"
            )
        return self


class EngineSettings(_Section):
    """TorchServe: instances and how each serves a version."""

    instances: int = Field(default=1, ge=1, le=8)
    base_port: Port = 8180
    """Instance i takes base_port + 10 * i and the four ports after it."""
    worker_base_port: Port = 9500
    """Instance i names its workers' sockets from worker_base_port + 100 * i."""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    threads: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1)
    max_batch_delay_ms: int = Field(default=1, ge=1)
    queue_size: int = Field(default=100, ge=1)
    load_timeout_s: float = 30.0
    """A version whose workers are not up by then is refused. Large models on slow disks, or many
    workers on few cores, need more."""
    response_timeout_s: int = 30


class ControlSettings(_Section):
    """The control service: its port and how often it compares the world with the ledger."""

    port: Port = 8090
    tick_s: float = 1.0
    drain_timeout_s: float = 60.0
    max_archive_bytes: int = 8 * 1024**3


class Settings(BaseSettings):
    """All settings of one stack. Two stacks on one machine differ in state_dir and ports."""

    model_config = SettingsConfigDict(
        env_prefix="VLSERVE_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    project_dir: Path = Field(default_factory=_project_dir)
    state_dir: Path = Path(".vlserve")
    """Rendered configuration, logs, sockets and engine stores; safe to delete when down."""
    model_store: Path = Path("model_store")
    """Archives and the ledger; what a backup needs."""
    gateway: GatewaySettings = GatewaySettings()
    engine: EngineSettings = EngineSettings()
    control: ControlSettings = ControlSettings()

    @model_validator(mode="after")
    def _absolute_paths(self) -> "Settings":
        for name in ("state_dir", "model_store"):
            path = self.project_dir / getattr(self, name)
            object.__setattr__(self, name, path.resolve())
        return self

    @cached_property
    def config_dir(self) -> Path:
        """What operators edit."""
        return self.project_dir / "serving_config"

    @cached_property
    def control_url(self) -> str:
        return f"http://127.0.0.1:{self.control.port}"

    @cached_property
    def gateway_url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.gateway.host, self.gateway.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.gateway.port}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = _project_dir() / "serving_config" / "vlserve.yaml"
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, file)


def load_settings() -> Settings:
    """Settings of this environment; SettingsError names each wrong entry."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = wrong_fields(error, "settings")
        raise SettingsError(f"settings cannot work: {wrong}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"serving_config/vlserve.yaml is not YAML: {error}") from error
