"""What an operator may set: config.toml, the environment and secret files as frozen values."""

import re
from collections.abc import Iterator, Mapping
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


def _listed(value: object) -> object:
    """Let a variable hold a list: `BOT_ACCESS__ADMINS=discord:1,slack:U01`."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _paired(value: object) -> object:
    """Let a variable hold a table: `BOT_LOGS__LEVELS=bot.engine=debug,alembic=info`."""
    if not isinstance(value, str):
        return dict(_flat(value)) if isinstance(value, dict) else value
    return {key.strip(): word.strip() for key, _, word in (item.partition("=") for item in value.split(","))}


def _flat(table: dict[str, object], parent: str = "") -> Iterator[tuple[str, object]]:
    """Join what TOML takes apart: to it, bot.engine without quotes is a table in a table."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{parent}{name}.")
        else:
            yield f"{parent}{name}", value


def _identified(value: str) -> str:
    platform, colon, id = value.partition(":")
    if not (platform and colon and id) or value.split() != [value]:
        raise ValueError(f'{value!r} is not written "platform:id", as in "discord:1234"')
    return value


PlatformId = Annotated[str, AfterValidator(_identified)]
PlatformIds = Annotated[tuple[PlatformId, ...], BeforeValidator(_listed)]


def _is_http(url: SecretStr) -> SecretStr:
    if not re.match(r"(https?://\S+)?$", url.get_secret_value()):
        raise ValueError('it must begin with http:// or https://, as in "http://proxy:3128"')
    return url


# Secret only if it contains a password.
Proxy = Annotated[SecretStr, AfterValidator(_is_http), Address]
NO_PROXY = SecretStr("")


class Section(BaseModel):
    """A table of config.toml; each field's description is its comment there."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and info.field_name and cls.model_fields[info.field_name].annotation in (int, float):
            raise ValueError(f"{str(value).lower()} is not a number")
        return value


class ConversationSection(Section):
    """How the bot talks."""

    system_prompt: str = Field(default="", description="said to the model before every conversation")
    language: Literal["auto", "en", "zh"] = Field(
        default="auto", description="the bot's own words: auto (as the asker's app, or as the message), en, zh"
    )
    history_turns: int = Field(
        default=100, ge=0, description="how many earlier exchanges the model is shown, if they fit"
    )
    answer_tokens: int = Field(default=512, ge=1, description="tokens of the model's context kept for the answer")
    name_speakers: bool = Field(default=True, description="where several people talk, tell the model who said what")
    catch_up_minutes: float = Field(
        default=60, ge=0, description="what was asked while the bot was away is answered if it is not older than this"
    )


class EngineSection(Section):
    """Which model answers, and how it runs."""

    backend: str = Field(default="chatglm", description="chatglm, transformers: other chat models, echo: none")
    model: str = Field(default="demo", description='"demo", a folder, or a hub name: "THUDM/chatglm-6b"')
    revision: str = Field(default="", description='of a hub name, e.g. "v1.1.0"')
    quantization: Literal["none", "int8", "int4"] = Field(default="none", description="none, int8, int4")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|mps|cpu(,cpu)*|cuda|cuda:\d+(, ?cuda:\d+)*)$",
        description='auto, cuda, cuda:1 (the second one), "cuda:0,cuda:1" (layers split), mps, cpu',
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto, float32, bfloat16, float16"
    )
    context_length: int = Field(
        default=0, ge=0, description="tokens of prompt and answer; 0 = the model's, 8192 at most"
    )
    max_batch_size: int = Field(default=8, ge=1, description="requests answered together; 1 = strictly one at a time")
    max_waiting: int = Field(default=64, ge=1, description="requests that may wait; more are refused with a reason")
    ptuning: str = Field(default="", description="a folder with a P-Tuning v2 prefix")


class SamplingSection(Section):
    """How the next token is drawn."""

    temperature: float = Field(default=0.95, ge=0, le=2, description="0 takes the likeliest token every time")
    top_p: float = Field(
        default=0.7, gt=0, le=1, description="draw from the likeliest tokens with this total probability"
    )
    top_k: int = Field(default=50, ge=0, description="draw from this many of the likeliest tokens; 0 = from all")


class LimitsSection(Section):
    """How much one may ask; 0 switches a limit off where it says so."""

    requests_per_minute: int = Field(default=20, ge=0, description="per user; 0 = no limit")
    requests_per_minute_channel: int = Field(default=60, ge=0, description="per channel; 0 = no limit")
    tokens_per_hour: int = Field(
        default=50_000, ge=0, description="per user, prompts and answers together; 0 = no limit"
    )
    tokens_per_hour_channel: int = Field(default=500_000, ge=0, description="the same per channel; 0 = no limit")
    waiting_per_user: int = Field(
        default=2, ge=0, description="questions of one person that wait or are being answered; 0 = no limit"
    )
    waiting_per_channel: int = Field(default=20, ge=0, description="the same per channel; 0 = no limit")
    max_message_chars: int = Field(default=8_000, ge=1, description="a longer message is refused")
    max_answer_tokens: int = Field(
        default=0, ge=0, description="a longer answer is cut off there; 0 = as long as the context allows"
    )
    answer_seconds: float = Field(default=600.0, gt=0, description="an answer that takes longer is cut off there")


class StorageSection(Section):
    """Where conversations are kept."""

    url: Annotated[SecretStr, Address] = Field(
        default=SecretStr("sqlite+aiosqlite:///data/bot.db"),
        description="SQLite or PostgreSQL; one with a password goes into BOT_STORAGE__URL",
    )
    retention_days: int = Field(default=0, ge=0, description="texts older than this are deleted; 0 = kept for ever")

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
    """Who may do what; people, servers and channels are written "platform:id"."""

    admins: PlatformIds = Field(
        default=(), description='may stop, retry and clear everywhere: "discord:1234", "slack:U01"'
    )
    allow_servers: PlatformIds = Field(default=(), description="if not empty, only these servers are answered")
    allow_channels: PlatformIds = Field(default=(), description="if not empty, only these channels are answered")
    allow_users: PlatformIds = Field(default=(), description="if not empty, only these people are answered")
    allow_roles: PlatformIds = Field(
        default=(), description='if not empty, only people with one of these roles: "discord:5678"'
    )
    deny_servers: PlatformIds = Field(default=(), description="never answered, whatever is allowed")
    deny_channels: PlatformIds = Field(default=(), description="never answered, whatever is allowed")
    deny_users: PlatformIds = Field(default=(), description="never answered, whatever is allowed")
    clear_by: Literal["everyone", "admins"] = Field(
        default="everyone", description="who may make the bot forget a channel: everyone, admins"
    )


class LogsSection(Section):
    """What is logged, on standard error; never what people wrote."""

    level: Level = Field(default="info", description="debug, info, warning, error; libraries are heard from warning on")
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto: console on a terminal, else json"
    )
    levels: Annotated[dict[str, Level], BeforeValidator(_paired)] = Field(
        default_factory=dict, description='of single parts and libraries: { "bot.engine" = "debug", alembic = "info" }'
    )


class OperationsSection(Section):
    """What a machine asks this program: /livez, /readyz and /metrics, without a password."""

    enabled: Literal["auto"] | bool = Field(
        default="auto", description="auto (on when a platform other than the terminal is served), true, false"
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="where it listens; 0.0.0.0 in a container")
    port: int = Field(default=9464, ge=0, le=65535, description="0 = any free one, which the log tells")
    stalled_seconds: float = Field(
        default=60.0, gt=0, description="a step of the model that takes longer makes /readyz say no"
    )


class AdapterSection(Section):
    """What all platforms have in common; each adds its own settings and secrets.

    A secret is a field of type `SecretStr | None`; `tokens` names those that the
    platform cannot be reached without.
    """

    tokens: ClassVar[tuple[str, ...]] = ()

    enabled: Literal["auto"] | bool = Field(
        default="auto", description="auto (on when its token is there), true, false"
    )

    def missing(self) -> tuple[str, ...]:
        """Name the tokens that are not there."""
        return tuple(name for name in self.tokens if getattr(self, name) is None)

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        missing = self.missing()
        some_are_there = len(missing) < len(self.tokens)
        if missing and (self.enabled is True or (self.enabled == "auto" and some_are_there)):
            why = "enabled = true" if self.enabled is True else "one token is there"
            raise PydanticCustomError("tokens_missing", "tokens are missing", {"missing": missing, "why": why})
        return self


class Config(BaseModel):
    """All settings; what exists is valid.  `adapters` holds those switched off too."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    conversation: ConversationSection = ConversationSection()
    engine: EngineSection = EngineSection()
    sampling: SamplingSection = SamplingSection()
    limits: LimitsSection = LimitsSection()
    storage: StorageSection = StorageSection()
    access: AccessSection = AccessSection()
    logs: LogsSection = LogsSection()
    operations: OperationsSection = OperationsSection()
    adapters: Mapping[str, AdapterSection] = Field(default_factory=dict)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return every secret, for redaction."""
        return tuple(secret_values(self))

    @property
    def enabled_adapters(self) -> dict[str, AdapterSection]:
        """Those to run.

        "auto" means on when the tokens are there; an adapter that needs no token
        (the console) is then on when nothing else is.
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
        """Whether the operations server runs; "auto" means beside a platform that needs a token."""
        if self.operations.enabled == "auto":
            return any(section.tokens for section in self.enabled_adapters.values())
        return self.operations.enabled


Key = tuple[str, ...]  # a table and the setting in it: ("engine", "quantization")


def known_settings(adapters: Mapping[str, type[AdapterSection]]) -> dict[Key, FieldInfo]:
    """Find every setting there is, in the order of config.toml."""
    tables: dict[Key, type[BaseModel]] = {
        (name,): field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
    tables |= {("adapters", name): section for name, section in adapters.items()}
    return {(*table, name): field for table, section in tables.items() for name, field in section.model_fields.items()}


def variable(key: Key) -> str:
    """Name the environment variable of a setting.

    >>> variable(("engine", "quantization")), variable(("adapters", "discord", "token"))
    ('BOT_ENGINE__QUANTIZATION', 'BOT_DISCORD__TOKEN')
    """
    return "BOT_" + "__".join(key[1:] if key[0] == "adapters" else key).upper()


def secret_file(key: Key) -> str:
    """Name the secret file of a setting.

    >>> secret_file(("adapters", "discord", "token"))
    'discord__token'
    """
    return variable(key).removeprefix("BOT_").lower()
