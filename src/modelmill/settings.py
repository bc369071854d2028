"""One frozen tree of settings from `HOME/modelmill.toml` and `MODELMILL_*` variables, read once at
start.

A variable names a leaf with two underscores between levels: `MODELMILL_LIMITS__QUEUE=500`.
"""

import os
import tomllib
from contextlib import suppress
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from modelmill.errors import InvalidInput

FILE = "modelmill.toml"
FROZEN = ConfigDict(frozen=True, extra="forbid")


def default_home() -> Path:
    """`MODELMILL_HOME`, else `~/.modelmill`."""
    return (
        Path(os.environ.get("MODELMILL_HOME") or Path.home() / ".modelmill")
        .expanduser()
        .absolute()
    )


def machine_memory() -> int:
    """Bytes of memory that this machine, or the container we are in, has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


class Limits(BaseModel):
    """What a caller may ask for."""

    model_config = FROZEN
    body_bytes: int = Field(
        default=64 << 20, ge=1024, description="largest body of a prediction"
    )
    receiving_bytes: int = Field(
        default=0,
        ge=0,
        description="bytes of the bodies that a gateway process receives at one time, of which a "
        "key may use half; 0: an eighth of the machine's memory, shared by the processes",
    )
    upload_bytes: int = Field(
        default=20 << 30, ge=1024, description="largest upload of a data set"
    )
    queue: int = Field(
        default=2048, ge=1, description="calls that may wait for one deployment"
    )
    queue_bytes: int = Field(
        default=1 << 30,
        ge=1024,
        description="bytes of the calls that wait for one deployment",
    )
    timeout_seconds: float = Field(
        default=60,
        gt=0,
        description="longest time a call may take, and its body to arrive",
    )
    hang_seconds: float = Field(
        default=30,
        gt=0,
        description="a worker that needs longer for one batch is replaced, its calls go to another",
    )
    load_seconds: float = Field(
        default=600,
        gt=0,
        description="a model that takes longer to load fails, and is tried again later",
    )
    batch: int = Field(
        default=64,
        ge=1,
        description="most calls and rows in one batch, whatever the model gains",
    )
    header_bytes: int = Field(
        default=64 << 10,
        ge=1024,
        description="largest request line with its headers",
    )
    headers: int = Field(
        default=100, ge=8, description="most headers of a request"
    )
    header_seconds: float = Field(
        default=10,
        gt=0,
        description="longest time from the first byte to the last header",
    )
    body_seconds: float = Field(
        default=30,
        gt=0,
        description="longest pause in a body, or in reading an answer",
    )
    idle_seconds: float = Field(
        default=75,
        gt=0,
        description="how long a connection without a request stays open",
    )
    connections: int = Field(
        default=4096,
        ge=1,
        description="connections open at once; more get status 503",
    )
    free_bytes: int = Field(
        default=64 << 20,
        ge=0,
        description="room on the disk below which readiness says no; uploads leave it",
    )


class TracingSettings(BaseModel):
    """Where traces go."""

    model_config = FROZEN
    endpoint: str = Field(
        default_factory=lambda: os.environ.get(
            "OTEL_EXPORTER_OTLP_ENDPOINT", ""
        ),
        pattern=r"^(https?://[^\s/]+\S*)?$",
        validate_default=True,
        description="URL of an OpenTelemetry collector (OTLP over HTTP, mostly port 4318); empty: "
        "no traces",
    )
    sample: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of requests that are traced when the caller has not decided",
    )


class LogSettings(BaseModel):
    """How much is kept of each log: of the supervisor, the gateways, the workers, and each job."""

    model_config = FROZEN
    part_bytes: int = Field(
        default=10 << 20,
        ge=4096,
        description="bytes of a log before its next part begins",
    )
    parts: int = Field(
        default=5,
        ge=1,
        description="full parts of a log that are kept; the oldest go",
    )


class _TomlFile(TomlConfigSettingsSource):
    """A file that may begin with a byte order mark, as some editors write it."""

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        return tomllib.loads(file_path.read_bytes().decode("utf-8-sig"))


class Settings(BaseSettings):
    """All settings of a node."""

    model_config = SettingsConfigDict(
        env_prefix="MODELMILL_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
    )
    home: Path = Field(
        default_factory=default_home,
        description="database, artifacts, logs, admin key",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(
        default=8080,
        ge=0,
        le=65535,
        description="port to listen on; 0 picks a free one",
    )
    grpc_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="port for gRPC; empty: the one after `port`; 0 picks a free one",
    )
    certificate: Path | None = Field(
        default=None,
        description="TLS certificate chain (PEM), for HTTP and gRPC",
    )
    certificate_key: Path | None = Field(
        default=None, description="private key of the certificate (PEM)"
    )
    hosts: tuple[str, ...] = Field(
        default=(),
        description="names that requests may be sent to, such as models.example.org (without a "
        "port); empty: any",
    )
    database: str = Field(
        default="", description="SQLAlchemy URL; empty: SQLite in the home"
    )
    threads: int = Field(
        default_factory=lambda: len(os.sched_getaffinity(0)),
        ge=1,
        description="cores that jobs use, and workers share",
    )
    invocations: str = Field(
        default="",
        description="deployment that SageMaker's /invocations asks; empty: the only one there is",
    )
    gateways: int = Field(
        default=1,
        ge=1,
        le=64,
        description="gateway processes that share the port",
    )
    memory_bytes: int = Field(
        default=0,
        ge=0,
        description="what all workers may hold before idle models sleep; 0: 80 % of the machine's",
    )
    drain_seconds: float = Field(
        default=30,
        ge=0,
        description="longest wait for calls in flight when stopping",
    )
    shared_memory: bool = Field(
        default=False,
        description="tensors in shared memory for clients on this machine (v2)",
    )
    public_reflection: bool = Field(
        default=False,
        description="gRPC reflection without a key: it shows message types, nothing of models",
    )
    limits: Limits = Limits()
    logs: LogSettings = LogSettings()
    tracing: TracingSettings = Field(default_factory=TracingSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over variables, variables over the file."""
        home = Path(
            getattr(init_settings, "init_kwargs", {}).get("home")
            or default_home()
        )
        return (
            init_settings,
            env_settings,
            _TomlFile(settings_cls, home / FILE),
        )


def exposed_password(home: Path) -> str:
    """A warning where others than the owner may read a password of the database in the settings'
    file; empty where they may not.
    """
    path = home / FILE
    try:
        mode = path.stat().st_mode & 0o077
        url = tomllib.loads(path.read_text("utf-8-sig")).get("database", "")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return ""
    parts = urlsplit(str(url))
    if not mode or not (parts.password or "password" in parse_qs(parts.query)):
        return ""
    return (
        f"warning: others may read {path}, which holds the password of the database: "
        f"chmod 600 {path}"
    )


def read_settings(**given: Any) -> Settings:
    """The settings of this process; raises `InvalidInput` naming the wrong one."""
    try:
        return Settings(
            **{
                name: value
                for name, value in given.items()
                if value is not None
            }
        )
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"modelmill.toml can't be read: {error}") from error
    except SettingsError as error:
        raise InvalidInput(
            f"a MODELMILL_ variable can't be read: {error}"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(
            f"setting {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
        ) from error
