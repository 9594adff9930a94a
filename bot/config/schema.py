"""Settings: the schema of config.toml, environment variables and secret files."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from bot.config.secrets import Address, has_raw_at_sign, secret_values

Level = Literal["debug", "info", "warning", "error"]


def _split_list(value: object) -> object:
    """Split a list in an environment variable: `BOT_ACCESS__ADMINS=discord:1,slack:U01`."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _split_pairs(value: object) -> object:
    """Split a table in an environment variable: `BOT_LOGS__LEVELS=bot.engine=debug,alembic=info`."""
    if not isinstance(value, str):
        return dict(_flat(value)) if isinstance(value, dict) else value
    return {key.strip(): word.strip() for key, _, word in (item.partition("=") for item in value.split(","))}


def _flat(table: dict[str, object], parent: str = "") -> Iterator[tuple[str, object]]:
    """Join nested tables: TOML reads bot.engine without quotes as a table in a table."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{parent}{name}.")
        else:
            yield f"{parent}{name}", value


def _check_id(value: str) -> str:
    platform, colon, id = value.partition(":")
    if not (platform and colon and id) or value.split() != [value]:
        raise ValueError(f'{value!r} is not written "platform:id", as in "discord:1234"')
    return value


PlatformId = Annotated[str, AfterValidator(_check_id)]
PlatformIds = Annotated[tuple[PlatformId, ...], BeforeValidator(_split_list)]


def _check_http(url: SecretStr) -> SecretStr:
    if not re.match(r"(https?://\S+)?$", url.get_secret_value()):
        raise ValueError('it must begin with http:// or https://, as in "http://proxy:3128"')
    return url


# Secret only if it contains a password.
Proxy = Annotated[SecretStr, AfterValidator(_check_http), Address]
NO_PROXY = SecretStr("")


# Of any setting: larger numbers overflow in dates, databases or timers.
_LARGEST_NUMBER = 1_000_000_000
# Days; earlier dates may have no representation.
_CENTURY = 36_500


class Section(BaseModel):
    """A section of config.toml; the description of a field is its comment there."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bool_as_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and info.field_name and cls.model_fields[info.field_name].annotation in (int, float):
            raise ValueError(f"{str(value).lower()} is not a number")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _reject_overflow(cls, value: object) -> object:
        if isinstance(value, int | float) and value > _LARGEST_NUMBER:
            raise ValueError(f"the number is too large; the maximum is {_LARGEST_NUMBER:,}")
        return value


class ConversationSection(Section):
    """Conversation: prompt, history and language."""

    system_prompt: str = Field(default="", description="system prompt: instructions at the start of every conversation")
    language: Literal["auto", "en", "zh"] = Field(
        default="auto", description="language of the bot's own messages: auto (from the user's app or message), en, zh"
    )
    history_turns: int = Field(default=100, ge=0, description="maximum number of earlier exchanges in the prompt")
    answer_tokens: int = Field(default=512, ge=1, description="tokens of the context reserved for the answer")
    name_speakers: bool = Field(
        default=True, description="in group conversations, put the name of the author before each message"
    )
    show_thoughts: bool = Field(
        default=False, description="show the reasoning of a thinking model until its answer begins"
    )
    catch_up_minutes: float = Field(
        default=60, ge=0, le=_CENTURY * 24 * 60, description="answer missed messages up to this many minutes old"
    )


class EngineSection(Section):
    """Model and inference."""

    backend: str = Field(
        default="auto",
        description="auto (urls or the model's config.json decide), chatglm, transformers (other chat models), "
        "remote (a model server), echo (no model)",
    )
    model: str = Field(
        default="demo", description='"demo", a folder, or a Hugging Face name such as "THUDM/chatglm-6b"'
    )
    revision: str = Field(default="", description='revision on Hugging Face, such as "v1.1.0"')
    quantization: Literal["none", "int8", "int4"] = Field(default="none", description="none, int8, int4")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|mps|cpu(,cpu)*|cuda|cuda:\d+(, ?cuda:\d+)*)$",
        description='auto, cuda, cuda:1 (the second GPU), "cuda:0,cuda:1" (layers split across both), mps, cpu',
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto, float32, bfloat16, float16"
    )
    context_length: int = Field(
        default=0, ge=0, description="maximum tokens of prompt and answer together; 0 = the model's limit, at most 8192"
    )
    max_batch_size: int = Field(default=8, ge=1, description="requests in one batch; 1 = one at a time")
    max_waiting: int = Field(
        default=64, ge=1, description="maximum queued requests; further ones are rejected with a message"
    )
    ptuning: str = Field(default="", description="folder with a P-Tuning v2 prefix")
    urls: Annotated[tuple[str, ...], BeforeValidator(_split_list)] = Field(
        default=(), description='remote: addresses of the same model, as in ["http://localhost:11434/v1"]'
    )
    key: SecretStr | None = Field(default=None, description="remote: the key of these servers")
    proxy: Proxy = Field(
        default=NO_PROXY,
        description="remote: HTTP proxy; empty = HTTPS_PROXY; put one with a password into BOT_ENGINE__PROXY",
    )
    server: Literal["auto", "vllm", "sglang", "llama-server", "other"] = Field(
        default="auto",
        description="remote: auto (by its list of models), vllm, sglang, llama-server, other; "
        "the first three continue a broken answer",
    )
    ca_file: str = Field(default="", description="remote: certificates of a private authority (PEM)")
    connect_seconds: float = Field(default=5.0, gt=0, description="remote: time limit of connecting")
    first_token_seconds: float = Field(default=120.0, gt=0, description="remote: time limit of the first token")
    next_token_seconds: float = Field(default=60.0, gt=0, description="remote: time limit between two tokens")
    fallback: str = Field(
        default="", description='model that answers if this one cannot begin to: a NAME of [models.NAME], or "engine"'
    )


# `[engine]` among the models, as `fallback` names it.
DEFAULT_MODEL = "engine"


def _check_model_name(name: str) -> str:
    if name == DEFAULT_MODEL or not re.fullmatch(r"[a-z0-9]+([_.-][a-z0-9]+)*", name):
        raise ValueError(
            f"{name!r} cannot be the name of a model: use lower-case letters, digits, and single - _ . between them, but "
            f'not "{DEFAULT_MODEL}"'
        )
    return name


ModelName = Annotated[str, AfterValidator(_check_model_name)]


class SamplingSection(Section):
    """Sampling of the next token."""

    temperature: float = Field(default=0.95, ge=0, le=2, description="sampling temperature; 0 = greedy decoding")
    top_p: float = Field(
        default=0.7, gt=0, le=1, description="sample from the most likely tokens with this total probability"
    )
    top_k: int = Field(default=50, ge=0, description="sample from this many of the most likely tokens; 0 = all")


class LimitsSection(Section):
    """Rate limits and quotas."""

    requests_per_minute: int = Field(default=20, ge=0, description="requests per minute and user; 0 = no limit")
    requests_per_minute_channel: int = Field(
        default=60, ge=0, description="requests per minute and channel; 0 = no limit"
    )
    tokens_per_hour: int = Field(
        default=50_000, ge=0, description="tokens per hour and user, prompts and answers together; 0 = no limit"
    )
    tokens_per_hour_channel: int = Field(default=500_000, ge=0, description="tokens per hour and channel; 0 = no limit")
    waiting_per_user: int = Field(
        default=2, ge=0, description="open questions per user, queued or being answered; 0 = no limit"
    )
    waiting_per_channel: int = Field(default=20, ge=0, description="open questions per channel; 0 = no limit")
    max_message_chars: int = Field(
        default=8_000, ge=1, description="maximum characters of a message; longer ones are rejected"
    )
    max_answer_tokens: int = Field(
        default=0, ge=0, description="maximum tokens of an answer (max_new_tokens); 0 = as many as the context allows"
    )
    answer_seconds: float = Field(
        default=600.0, gt=0, description="time limit of an answer in seconds; the text so far is kept"
    )


class StorageSection(Section):
    """Database."""

    url: Annotated[SecretStr, Address] = Field(
        default=SecretStr("sqlite+aiosqlite:///data/bot.db"),
        description="SQLite or PostgreSQL; put a URL with a password into BOT_STORAGE__URL",
    )
    retention_days: int = Field(
        default=0, ge=0, le=_CENTURY, description="delete texts after this many days; 0 = never"
    )

    @field_validator("url")
    @classmethod
    def _known_database(cls, url: SecretStr) -> SecretStr:
        known = ("sqlite+aiosqlite:///", "postgresql://", "postgres://", "postgresql+psycopg://")
        written = url.get_secret_value()
        if not written.startswith(known):
            raise ValueError("it must begin with sqlite+aiosqlite:/// (a file) or postgresql:// (a server)")
        if has_raw_at_sign(written):
            raise ValueError("it has more than one @: in a password @ is written %40, : %3A, / %2F and % %25")
        return url


class AccessSection(Section):
    """Access control; users, servers and channels are written "platform:id"."""

    admins: PlatformIds = Field(
        default=(), description='users who may stop, retry and clear everywhere: "discord:1234", "slack:U01"'
    )
    allow_servers: PlatformIds = Field(default=(), description="if not empty, answer only in these servers")
    allow_channels: PlatformIds = Field(default=(), description="if not empty, answer only in these channels")
    allow_users: PlatformIds = Field(default=(), description="if not empty, answer only these users")
    allow_roles: PlatformIds = Field(
        default=(), description='if not empty, answer only users with one of these roles: "discord:5678"'
    )
    deny_servers: PlatformIds = Field(
        default=(), description="never answer in these servers; overrides the allow lists"
    )
    deny_channels: PlatformIds = Field(
        default=(), description="never answer in these channels; overrides the allow lists"
    )
    deny_users: PlatformIds = Field(default=(), description="never answer these users; overrides the allow lists")
    clear_by: Literal["everyone", "admins"] = Field(
        default="everyone", description="users who may clear the conversation of a channel: everyone, admins"
    )


class LogsSection(Section):
    """Logging to standard error; never contains message texts."""

    level: Level = Field(default="info", description="debug, info, warning, error; libraries log at warning and above")
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto (console on a terminal, else json), console, json"
    )
    levels: Annotated[dict[str, Level], BeforeValidator(_split_pairs)] = Field(
        default_factory=dict, description='per-logger levels: { "bot.engine" = "debug", alembic = "info" }'
    )


class OperationsSection(Section):
    """Health checks and metrics (HTTP): /livez, /readyz and /metrics, without authentication."""

    enabled: Literal["auto"] | bool = Field(
        default="auto", description="auto (on with any platform except the console), true, false"
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 in a container")
    port: int = Field(default=9464, ge=0, le=65535, description="port to listen on; 0 = any free port, see the log")
    stalled_seconds: float = Field(
        default=60.0, gt=0, description="/readyz returns 503 when one decoding step takes longer than this many seconds"
    )
    require_all_platforms: bool = Field(
        default=False, description="true: one rejected token ends the bot, and /readyz needs every platform"
    )


class KeySection(Section):
    """A client of the HTTP APIs; what is not set is as in [limits]."""

    secret: SecretStr | None = None
    models: Annotated[tuple[str, ...], BeforeValidator(_split_list)] = ()
    requests_per_minute: int | None = Field(default=None, ge=0)
    tokens_per_hour: int | None = Field(default=None, ge=0)
    waiting_per_user: int | None = Field(default=None, ge=0)

    @property
    def limits(self) -> dict[str, int]:
        """Return its own limits, named as in [limits]."""
        return self.model_dump(exclude={"secret", "models"}, exclude_none=True)


class ServerSection(Section):
    """HTTP APIs: ChatGLM-6B's own, and OpenAI's chat completions."""

    enabled: bool = Field(default=False, description="serve the HTTP APIs")
    host: str = Field(
        default="127.0.0.1", min_length=1, description="address to listen on; any but loopback needs a key"
    )
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 = any free port, see the log")
    hosts: Annotated[tuple[str, ...], BeforeValidator(_split_list)] = Field(
        default=(), description='host names that clients use besides loopback\'s: "bot.example.org"'
    )
    origins: Annotated[tuple[str, ...], BeforeValidator(_split_list)] = Field(
        default=(), description='web pages that may use the APIs: "https://chat.example.org"'
    )
    keys: dict[str, KeySection] | None = Field(
        default=None, description="keys of clients by name, each in BOT_SERVER__KEYS__NAME, as text or sha256:…"
    )

    @field_validator("keys")
    @classmethod
    def _require_secrets(cls, keys: dict[str, KeySection] | None) -> dict[str, KeySection] | None:
        for name, key in (keys or {}).items():
            if key.secret is None:
                raise ValueError(
                    f"{name!r} has no secret: set BOT_SERVER__KEYS__{name.upper()}; `bot key {name}` makes one"
                )
        return keys

    @model_validator(mode="after")
    def _require_a_key(self) -> Self:
        if self.host not in {"127.0.0.1", "::1", "localhost"} and not self.keys:
            why = (
                f"{self.host!r} is reachable from other machines: set a key in BOT_SERVER__KEYS__NAME, or use 127.0.0.1"
            )
            raise PydanticCustomError("one_setting", "see the context", {"setting": "host", "why": why})
        return self


class EmbeddingsSection(Section):
    """Embeddings: a second model, for the HTTP APIs' /embedding and /v1/embeddings."""

    model: str = Field(
        default="", description="folder of a sentence encoder of the BERT family (.safetensors); empty = none"
    )
    device: str = Field(
        default="cpu", pattern=r"^(auto|mps|cpu|cuda|cuda:\d+)$", description="auto, cpu, cuda, cuda:1, mps"
    )
    max_tokens: int = Field(
        default=0, ge=0, description="tokens of a text that are read; 0 = as its folder says, else 128"
    )
    normalize: bool = Field(
        default=False, description="vectors of length 1 from /embedding too; those from /v1/embeddings always are"
    )
    max_waiting: int = Field(default=16, ge=1, description="maximum queued requests; further ones get a 429")


class AdapterSection(Section):
    """Settings shared by all platforms.

    Secrets are fields of type `SecretStr | None`; `tokens` names the required ones.
    """

    tokens: ClassVar[tuple[str, ...]] = ()

    enabled: Literal["auto"] | bool = Field(default="auto", description="auto (on when its token is set), true, false")

    def missing(self) -> tuple[str, ...]:
        """Return the names of the required tokens that are not set."""
        return tuple(name for name in self.tokens if getattr(self, name) is None)

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        missing = self.missing()
        has_some = len(missing) < len(self.tokens)
        if missing and (self.enabled is True or (self.enabled == "auto" and has_some)):
            why = "enabled = true" if self.enabled is True else "only one token is set"
            raise PydanticCustomError("tokens_missing", "tokens are missing", {"missing": missing, "why": why})
        return self


class Config(BaseModel):
    """All settings, validated.  `adapters` includes disabled platforms."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    conversation: ConversationSection = ConversationSection()
    engine: EngineSection = EngineSection()
    models: Mapping[ModelName, EngineSection] = Field(default_factory=dict)
    sampling: SamplingSection = SamplingSection()
    limits: LimitsSection = LimitsSection()
    storage: StorageSection = StorageSection()
    access: AccessSection = AccessSection()
    logs: LogsSection = LogsSection()
    operations: OperationsSection = OperationsSection()
    server: ServerSection = ServerSection()
    embeddings: EmbeddingsSection = EmbeddingsSection()
    adapters: Mapping[str, AdapterSection] = Field(default_factory=dict)

    @property
    def sections(self) -> dict[str, EngineSection]:
        """Return the sections of all models by name, `[engine]` first."""
        return {DEFAULT_MODEL: self.engine, **self.models}

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return every secret, for redaction."""
        return tuple(secret_values(self))

    @property
    def enabled_adapters(self) -> dict[str, AdapterSection]:
        """Return the platforms to run.

        "auto" enables a platform whose tokens are set, and the console, which needs none, if no other is enabled.
        """
        chosen = {
            name: section
            for name, section in self.adapters.items()
            if section.enabled is True or (section.enabled == "auto" and section.tokens and not section.missing())
        }
        return chosen or {
            name: section for name, section in self.adapters.items() if section.enabled == "auto" and not section.tokens
        }

    @property
    def serves_operations(self) -> bool:
        """Return True if the operations server runs; "auto" enables it with any platform that needs a token."""
        if self.operations.enabled == "auto":
            return any(section.tokens for section in self.enabled_adapters.values())
        return self.operations.enabled


Key = tuple[str, ...]  # section and setting: ("engine", "quantization")


def known_settings(adapters: Mapping[str, type[AdapterSection]], models: Collection[str] = ()) -> dict[Key, FieldInfo]:
    """Return all settings in the order of config.toml; `models` are the names of its `[models.NAME]` tables."""
    tables: dict[Key, type[BaseModel]] = {
        (name,): field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
    tables |= {("models", name): EngineSection for name in models}
    tables |= {("adapters", name): section for name, section in adapters.items()}
    return {(*table, name): field for table, section in tables.items() for name, field in section.model_fields.items()}


def variable(key: Key) -> str:
    """Return the name of the environment variable of a setting.

    >>> variable(("engine", "quantization")), variable(("adapters", "discord", "token"))
    ('BOT_ENGINE__QUANTIZATION', 'BOT_DISCORD__TOKEN')
    """
    return "BOT_" + "__".join(key[1:] if key[0] == "adapters" else key).upper()


def secret_file(key: Key) -> str:
    """Return the name of the secret file of a setting.

    >>> secret_file(("adapters", "discord", "token"))
    'discord__token'
    """
    return variable(key).removeprefix("BOT_").lower()
