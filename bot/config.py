"""What an operator may set: config.toml, the environment and secret files as frozen values."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

Level = Literal["debug", "info", "warning", "error"]


def _listed(value: object) -> object:
    """Let a variable hold a list: `BOT_ACCESS__ADMINS=discord:1,slack:U01`."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _paired(value: object) -> object:
    """Let a variable hold a table: `BOT_LOGS__LEVELS=bot.engine=debug,alembic=info`."""
    if not isinstance(value, str):
        return value
    return {key.strip(): word.strip() for key, _, word in (item.partition("=") for item in value.split(","))}


PlatformId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*:\S+$")]
PlatformIds = Annotated[tuple[PlatformId, ...], BeforeValidator(_listed)]


class Section(BaseModel):
    """A table of config.toml; each field's description is its comment there."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class ConversationSection(Section):
    """How the bot talks."""

    system_prompt: str = Field(default="", description="said to the model before every conversation")
    language: Literal["auto", "en", "zh"] = Field(
        default="auto", description="the bot's own words: auto (as the asker's app, or as the message), en, zh"
    )
    history_turns: int = Field(
        default=20, ge=0, description="how many earlier exchanges the model is shown, if they fit"
    )
    answer_tokens: int = Field(default=512, ge=1, description="tokens of the model's context kept for the answer")
    name_speakers: bool = Field(default=False, description="where several people talk, tell the model who said what")


class EngineSection(Section):
    """Which model answers, and how it runs."""

    backend: str = Field(default="chatglm", description="chatglm, or echo: no model, to try things out")
    model: str = Field(default="demo", description='"demo", a folder, or a hub name: "THUDM/chatglm-6b"')
    revision: str = Field(default="", description='of a hub name, e.g. "v1.1.0"')
    quantization: Literal["none", "int8", "int4"] = Field(default="none", description="none, int8, int4")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cuda, cuda:1 (the second one), mps, cpu",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto, float32, bfloat16, float16"
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
    """How much one may ask; 0 switches a limit per minute or hour off."""

    requests_per_minute: int = Field(default=20, ge=0, description="per user; 0 = no limit")
    requests_per_minute_channel: int = Field(default=60, ge=0, description="per channel; 0 = no limit")
    tokens_per_hour: int = Field(
        default=50_000, ge=0, description="per user, prompts and answers together; 0 = no limit"
    )
    max_message_chars: int = Field(default=8_000, ge=1, description="a longer message is refused")
    answer_seconds: float = Field(default=600, gt=0, description="an answer that takes longer is cut off there")


class StorageSection(Section):
    """Where conversations are kept."""

    url: SecretStr = Field(
        default=SecretStr("sqlite+aiosqlite:///data/bot.db"),
        description="SQLite or PostgreSQL; one with a password goes into BOT_STORAGE__URL",
    )
    retention_days: int = Field(default=0, ge=0, description="texts older than this are deleted; 0 = kept for ever")


class AccessSection(Section):
    """Who may do what; people, servers and channels are written "platform:id"."""

    admins: PlatformIds = Field(
        default=(), description='may stop, retry and clear everywhere: "discord:1234", "slack:U01"'
    )
    allow_servers: PlatformIds = Field(default=(), description="if not empty, only these servers are answered")
    allow_channels: PlatformIds = Field(default=(), description="if not empty, only these channels are answered")
    allow_users: PlatformIds = Field(default=(), description="if not empty, only these people are answered")
    deny_servers: PlatformIds = Field(default=(), description="never answered, whatever is allowed")
    deny_channels: PlatformIds = Field(default=(), description="never answered, whatever is allowed")
    deny_users: PlatformIds = Field(default=(), description="never answered, whatever is allowed")
    clear_by: Literal["everyone", "admins"] = Field(
        default="everyone", description="who may make the bot forget a channel: everyone, admins"
    )


class LogsSection(Section):
    """What is logged, on standard error; never what people wrote."""

    level: Level = Field(default="info", description="debug, info, warning, error")
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto: console on a terminal, else json"
    )
    levels: Annotated[dict[str, Level], BeforeValidator(_paired)] = Field(
        default_factory=dict, description='of single parts: { "bot.engine" = "debug" }'
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
    adapters: Mapping[str, AdapterSection] = Field(default_factory=dict)

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
