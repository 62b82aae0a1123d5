"""What the operator decides: pairs, addresses and limits, from the environment (`RL_ONOFF_*`) and `models.yaml`."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from app import keys
from app.pair_config import ModelConfig, PairConfig, Section
from rl_onoff.errors import ConfigurationError

_DEMO = Path(__file__).resolve().parent.parent / "demo"


class Limits(Section):
    """What one request may ask for. Checked before any work starts, and named in the error."""

    body_bytes: int = Field(default=16 << 20, ge=1)
    header_bytes: int = Field(default=32 << 10, ge=1)
    body_seconds: float = Field(default=60, gt=0, description="for a request's head to arrive, and for its body")
    request_seconds: float = Field(
        default=3600, gt=0, description="for a request to be answered; X-Request-Timeout may ask for less"
    )
    text_chars: int = Field(default=8 << 20, ge=1)
    reference_chars: int = Field(default=32 << 10, ge=1, description="of each reference that a text is compared with")
    prompts: int = Field(default=1024, ge=1)
    samples: int = Field(default=4096, ge=1, description="prompts x n")
    items: int = Field(default=1024, ge=1)
    row_bytes: int = Field(default=256 << 20, ge=1, description="of all rows or top-k lists in one answer")
    running: int | None = Field(
        default=None,
        ge=1,
        description="tokens x vocabulary of all that a pair's workers are given at a time; default: what all their "
        "sequences come to at their longest",
    )
    queued: int | None = Field(
        default=None,
        ge=0,
        description="tokens x vocabulary that may wait for a pair, of each client; what is more is refused (429); "
        "default: 64 times `running`",
    )


def _demo_pair() -> PairConfig:
    return PairConfig(
        name="demo",
        a=ModelConfig(name="base", path=str(_DEMO / "base"), dtype="float32", device="cpu"),
        b=ModelConfig(name="rl", path=str(_DEMO / "rl"), dtype="float32", device="cpu"),
        examples=str(_DEMO / "problems.jsonl"),
    )


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="RL_ONOFF_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0: any free port")
    pairs: tuple[PairConfig, ...] = Field(default_factory=lambda: (_demo_pair(),), min_length=1)
    limits: Limits = Limits()
    worker_token: SecretStr | None = Field(default=None, description="what agents of `launch: remote` know it by")
    worker_token_file: Path | None = Field(default=None, description="the same, in a file")
    api_keys: Annotated[tuple[bytes, ...], NoDecode] = Field(
        default=(), repr=False, description="comma-separated in the environment; kept as SHA-256 digests"
    )
    api_keys_file: Path | None = Field(default=None, description="keys, one a line, read when the service starts")
    allow_unauthenticated: bool = Field(default=False, description="serve beyond loopback without API keys")
    cache_url: SecretStr | None = Field(default=None, description="redis://, rediss:// or unix://; default: in process")
    cache_url_file: Path | None = Field(default=None, description="the same, in a file, since it holds a password")
    cache_bytes: int = Field(default=256 << 20, ge=0, description="of the cache in this process; 0: none")
    cache_row_bytes: int = Field(
        default=64 << 20, ge=0, description="whole rows of one item beyond this are not cached"
    )
    cache_ttl: int = Field(default=7 * 86400, ge=1, description="seconds an entry lives in Redis")
    cache_timeout: float = Field(default=0.25, gt=0, description="for one operation of Redis, connecting included")
    cache_namespace: str = Field(default="", description="services of different ones share nothing in one Redis")
    drain_seconds: float = Field(default=30, ge=0, description="what running requests get after SIGTERM")
    stop_seconds: float = Field(default=5, ge=0, description="what a worker gets between SIGTERM and SIGKILL")
    step_timeout: float = Field(default=120, gt=0, description="a worker that makes no progress for so long is killed")
    resume_seconds: float = Field(
        default=300, ge=0, description="how long a request waits for its dead worker's successor"
    )
    most_deaths: int = Field(
        default=6, ge=1, description="of one worker in ten minutes: then the service ends, code 70"
    )
    reconnect_seconds: float = Field(
        default=120, ge=0, description="how long a switched stream is kept for a client that comes back; 0: not at all"
    )
    log_format: Literal["text", "json"] = "text"
    otel: bool = Field(default=False, description="send OpenTelemetry traces as the OTEL_* environment says")
    ping_seconds: float = Field(default=15, gt=0, description="between comments in an idle event stream")
    send_seconds: float = Field(default=30, gt=0, description="a client that reads nothing for so long is cut off")

    @field_validator("api_keys", mode="before")
    @classmethod
    def _digests(cls, given: object) -> object:
        named = [key.strip() for key in given.split(",")] if isinstance(given, str) else given
        if not isinstance(named, list | tuple):
            raise ValueError("must be keys separated by commas, or a list of them")
        if not all(isinstance(key, str) for key in named):
            raise ValueError("a key is text")
        return tuple(keys.digest(key) for key in named)

    @property
    def key_digests(self) -> tuple[bytes, ...]:
        """Of all API keys. Raises ConfigurationError where their file cannot be read."""
        return (*self.api_keys, *(keys.read(self.api_keys_file) if self.api_keys_file else ()))

    @property
    def agents_token(self) -> str:
        """What agents know the service by. Raises ConfigurationError where its file cannot be read."""
        if self.worker_token_file is None:
            return self.worker_token.get_secret_value() if self.worker_token else ""
        try:
            return self.worker_token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"worker_token_file: {error}") from error

    @property
    def redis_url(self) -> str | None:
        """Where the cache is. Raises ConfigurationError where its file cannot be read."""
        if self.cache_url_file is None:
            return None if self.cache_url is None else self.cache_url.get_secret_value()
        try:
            return self.cache_url_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"cache_url_file: {error}") from error

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        names = [name for pair in self.pairs for name in (pair.model_a, pair.model_b)]
        pairs = [pair.name for pair in self.pairs]
        policies = [name for pair in self.pairs for name in pair.policies]
        everything = [*policies, *{*names, *pairs, "switch"}]
        for kind, taken in (("pairs", pairs), ("models", names), ("policies, pairs or models", everything)):
            twice = {name for name in taken if taken.count(name) > 1}
            if twice:
                raise ValueError(f"two {kind} are called {', '.join(sorted(twice))}")
        return self


class _FileSettings(Settings):
    """Settings whose arguments, read from a file, yield to the environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


def load(config_path: Path | None = None) -> Settings:
    """Settings from `config_path` (default: `RL_ONOFF_CONFIG`, else no file), under the environment's.

    Paths of models that exist beside the file are taken from there. Raises ConfigurationError.
    """
    named = config_path or (Path(value) if (value := os.environ.get("RL_ONOFF_CONFIG")) else None)
    return _validated(_FileSettings, _read(named) if named else {}, str(named or "the environment"))


def pair_settings(
    a: str, b: str, *, backend: str = "hf", dtype: str = "auto", device: str = "auto", **settings: Any
) -> Settings:
    """Settings that serve one pair without a file; further settings by name. Raises ConfigurationError."""
    models = {side: {"path": path, "dtype": dtype, "device": device} for side, path in (("a", a), ("b", b))}
    pair = {"name": "pair", "backend": backend, **models}
    return _validated(Settings, {"pairs": [pair], **settings}, "the arguments")


def check_exposure(settings: Settings) -> None:
    """Raises ConfigurationError where the service would listen to strangers without asking who they are."""
    if settings.key_digests or settings.allow_unauthenticated or settings.host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigurationError(
            f"{settings.host} can be reached from other machines and the service asks for no key: set "
            "RL_ONOFF_API_KEYS or RL_ONOFF_API_KEYS_FILE, serve on 127.0.0.1, or set "
            "RL_ONOFF_ALLOW_UNAUTHENTICATED=1 where the network itself keeps strangers out"
        )


def check_agents(settings: Settings) -> None:
    """Raises ConfigurationError where workers are to be started elsewhere and nothing says who asks for them."""
    remote = next((pair.name for pair in settings.pairs if pair.agents), None)
    if remote is not None and not settings.agents_token:
        raise ConfigurationError(
            f"pair {remote} is launched by agents: set RL_ONOFF_WORKER_TOKEN, or RL_ONOFF_WORKER_TOKEN_FILE, to what "
            "they have"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path} must hold a mapping with `pairs`")
    for pair in document.get("pairs") or []:
        for side in ("a", "b"):
            model = pair.get(side) if isinstance(pair, dict) else None
            for key in ("path", "adapter"):
                if isinstance(model, dict) and isinstance(model.get(key), str):
                    model[key] = _beside(path, model[key])
        if isinstance(pair, dict) and isinstance(pair.get("examples"), str):
            pair["examples"] = str(path.parent / pair["examples"])
    return document


def _beside(file: Path, source: str) -> str:
    """`source` as lying beside the file, if it or the folder it is said to lie in does."""
    beside = file.parent / source
    parts = Path(source).parts
    return (
        str(beside.resolve()) if beside.exists() or (len(parts) > 1 and (file.parent / parts[0]).is_dir()) else source
    )


def _validated(kind: type[Settings], values: dict[str, Any], source: str) -> Settings:
    try:
        return kind(**values)
    except ValidationError as error:
        findings = "; ".join(
            f"{'.'.join(map(str, found['loc'])) or 'settings'}: {found['msg'].removeprefix('Value error, ')}"
            for found in error.errors(include_url=False, include_input=False)
        )
        raise ConfigurationError(f"{source}: {findings}") from error
