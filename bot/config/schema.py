"""Settings: the schema of config.toml, environment variables and secret files."""

import re
from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from bot.config.cluster import ClusterSection
from bot.config.http import EmbeddingsSection, OperationsSection, ServerSection
from bot.config.places import MOST_CONTEXT, PersonaName, PersonaSection, PlaceSection
from bot.config.quotas import QuotaName, QuotaSection
from bot.config.secrets import Address, has_raw_at_sign, secret_values
from bot.config.section import CENTURY, NO_PROXY, PlatformId, PlatformIds, Proxy, Section, split_list, split_pairs
from bot.config.sign_in import OidcSection
from bot.domain import LEVELS, ScopeLevel

Level = Literal["debug", "info", "warning", "error"]


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
    context_messages: int = Field(
        default=0,
        ge=0,
        le=MOST_CONTEXT,
        description="in channels, messages of others before a question that are read with it; 0 = none",
    )
    catch_up_minutes: float = Field(
        default=60, ge=0, le=CENTURY * 24 * 60, description="answer missed messages up to this many minutes old"
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
    urls: Annotated[tuple[str, ...], BeforeValidator(split_list)] = Field(
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
    vision: bool = Field(default=False, description="remote: the model sees pictures")
    ca_file: str = Field(default="", description="remote: certificates of a private authority (PEM)")
    connect_seconds: float = Field(default=5.0, gt=0, description="remote: seconds to wait for a connection")
    first_token_seconds: float = Field(default=120.0, gt=0, description="remote: seconds to wait for the first token")
    next_token_seconds: float = Field(default=60.0, gt=0, description="remote: seconds to wait for each further token")
    base: str = Field(
        default="",
        description="only in [models.NAME]: share the weights, queue and batch of this model, with another ptuning",
    )
    fallback: str = Field(
        default="", description='fallback if this model cannot begin an answer: a NAME of [models.NAME], or "engine"'
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
    """Limits per minute and hour, and of sizes."""

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
        default=16_000, ge=1, description="maximum characters of a message; longer ones are rejected"
    )
    max_answer_tokens: int = Field(
        default=0, ge=0, description="maximum tokens of an answer (max_new_tokens); 0 = as many as the context allows"
    )
    answer_seconds: float = Field(
        default=600.0, gt=0, description="time limit of an answer in seconds; the text so far is kept"
    )


class FilesSection(Section):
    """Attached files."""

    enabled: bool = Field(default=True, description="read attached files: text, code, PDF, Word, Excel, PowerPoint")
    max_megabytes: int = Field(default=20, ge=1, le=100, description="maximum size of a file; larger ones are not read")
    max_chars: int = Field(
        default=50_000,
        ge=1,
        le=1_000_000,
        description="maximum characters read from a file; the context may hold fewer",
    )


class FeedbackSection(Section):
    """Votes on answers."""

    enabled: bool = Field(
        default=False, description="buttons 👍 and 👎 below finished answers; everybody in the channel may vote"
    )
    export: bool = Field(
        default=False,
        description="let people agree with /settings share_answers true that their questions are exported with the votes",
    )


# Characters of a master key: it is used as it is, so that a password would be guessed.
MIN_MASTER_KEY = 32


class StorageSection(Section):
    """Database."""

    url: Annotated[SecretStr, Address] = Field(
        default=SecretStr("sqlite+aiosqlite:///data/bot.db"),
        description="SQLite or PostgreSQL; put a URL with a password into BOT_STORAGE__URL",
    )
    retention_days: int = Field(default=0, ge=0, le=CENTURY, description="delete texts after this many days; 0 = never")
    master_key: SecretStr | None = Field(
        default=None, description="encrypts the keys of the texts; make one with openssl rand -base64 32"
    )
    old_master_key: SecretStr | None = Field(
        default=None, description="the previous master key, for the restart that changes or removes it"
    )

    @field_validator("master_key")
    @classmethod
    def _is_random(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key.get_secret_value()) < MIN_MASTER_KEY:
            raise ValueError(
                f"it must have {MIN_MASTER_KEY} characters or more, and be random: make it with openssl rand -base64 32"
            )
        return key

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
    settings_by: Literal["managers", "admins"] = Field(
        default="managers",
        description="users who may change a channel's settings in the chat: managers (Discord: Manage Channels; Telegram: "
        "its administrators; Slack: its creator and the workspace's admins), admins",
    )


class LogsSection(Section):
    """Logging to standard error; never contains message texts."""

    level: Level = Field(default="info", description="debug, info, warning, error; libraries log at warning and above")
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto (console on a terminal, else json), console, json"
    )
    levels: Annotated[dict[str, Level], BeforeValidator(split_pairs)] = Field(
        default_factory=dict, description='per-logger levels: { "bot.engine" = "debug", alembic = "info" }'
    )


class AdapterSection(Section):
    """Settings shared by all platforms.

    Secrets are fields of type `SecretStr | None`; `tokens` names the required ones.
    """

    tokens: ClassVar[tuple[str, ...]] = ()
    # Whether ids of people and places are numbers, so that a name in place of one is a mistake.
    has_numeric_ids: ClassVar[bool] = False
    # What settings may name there.
    has_roles: ClassVar[bool] = True
    has_servers: ClassVar[bool] = True
    has_channels: ClassVar[bool] = True  # False: all of its chats are direct
    has_negative_groups: ClassVar[bool] = False  # groups are the servers, and their ids negative

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
    files: FilesSection = FilesSection()
    feedback: FeedbackSection = FeedbackSection()
    storage: StorageSection = StorageSection()
    cluster: ClusterSection = ClusterSection()
    access: AccessSection = AccessSection()
    logs: LogsSection = LogsSection()
    operations: OperationsSection = OperationsSection()
    server: ServerSection = ServerSection()
    oidc: OidcSection = OidcSection()
    embeddings: EmbeddingsSection = EmbeddingsSection()
    personas: Mapping[PersonaName, PersonaSection] = Field(default_factory=dict)
    users: Mapping[PlatformId, PlaceSection] = Field(default_factory=dict)
    roles: Mapping[PlatformId, PlaceSection] = Field(default_factory=dict)
    threads: Mapping[PlatformId, PlaceSection] = Field(default_factory=dict)
    channels: Mapping[PlatformId, PlaceSection] = Field(default_factory=dict)
    servers: Mapping[PlatformId, PlaceSection] = Field(default_factory=dict)
    platforms: Mapping[str, PlaceSection] = Field(default_factory=dict)
    quotas: Mapping[QuotaName, QuotaSection] = Field(default_factory=dict)
    adapters: Mapping[str, AdapterSection] = Field(default_factory=dict)

    @property
    def sections(self) -> dict[str, EngineSection]:
        """Return the sections of all models by name, `[engine]` first."""
        return {DEFAULT_MODEL: self.engine, **self.models}

    @property
    def places(self) -> dict[ScopeLevel, Mapping[str, PlaceSection]]:
        """Return the tables of places and people by level, the narrowest first: `[users."discord:1"]` and so on."""
        return {level: getattr(self, table_of(level)) for level in LEVELS}

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


def table_of(level: ScopeLevel) -> str:
    """Return the name of the tables of a level in config.toml.

    >>> table_of("channel")
    'channels'
    """
    return f"{level}s"


# Tables of config.toml whose names an operator chooses, and that no environment variable sets.
NAMED_TABLES: Mapping[str, type[Section]] = {
    "personas": PersonaSection,
    **{table_of(level): PlaceSection for level in LEVELS},
    "quotas": QuotaSection,
}


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
