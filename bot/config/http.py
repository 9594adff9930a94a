"""Settings of what is served over HTTP: health checks, the APIs and their embeddings."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from bot.config.section import PlatformIds, Section, split_list
from bot.config.sign_in import Networks, Origin, is_loopback

# The platform of the chat page; `server.web` enables it, and it has no table under [adapters].
WEB_PLATFORM = "web"


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
    models: Annotated[tuple[str, ...], BeforeValidator(split_list)] = ()
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
    hosts: Annotated[tuple[str, ...], BeforeValidator(split_list)] = Field(
        default=(), description='host names that clients use besides loopback\'s: "bot.example.org"'
    )
    origins: Annotated[tuple[str, ...], BeforeValidator(split_list)] = Field(
        default=(), description='web pages that may use the APIs: "https://chat.example.org"'
    )
    web: Literal["auto"] | bool = Field(
        default="auto",
        description="a chat page at /: auto (on with a public_url, or with a loopback host and no keys), true, false",
    )
    panel: bool = Field(
        default=False,
        description="the operator's panel at /admin, beside the chat page: state, usage, settings, log, pause; every "
        "account of this machine can use it",
    )
    show_texts: bool = Field(
        default=False, description="let the panel show texts that people set in the chat, such as personas"
    )
    public_url: Origin = Field(
        default="",
        description='address of these pages for browsers elsewhere, which sign in: "https://bot.example.org"; empty = none',
    )
    trusted_proxies: Networks = Field(
        default=(), description='proxies before the server, as addresses or networks: "127.0.0.1"; https needs one'
    )
    proxy_header: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9-]*$",
        description='header in which a trusted proxy names the person who signed in there: "X-Forwarded-User"',
    )
    operators: PlatformIds = Field(
        default=(),
        description='admins who may also change what names a host, path, secret or admin in the panel: "discord:1234"',
    )
    session_hours: float = Field(default=12, gt=0, le=24 * 365, description="a sign-in ends after this many hours")
    aliases: Annotated[tuple[str, ...], BeforeValidator(split_list)] = Field(
        default=(), description='other names of the default model for OpenAI\'s clients: "gpt-3.5-turbo"'
    )
    keys: dict[str, KeySection] | None = Field(
        default=None, description="keys of clients by name, each in BOT_SERVER__KEYS__NAME, as text or sha256:…"
    )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return is_loopback(self.host)

    @property
    def serves_web(self) -> bool:
        """Whether the chat page is served; who has keys only may not expect it, so they turn "auto" off."""
        if self.web == "auto":
            return bool(self.public_url) or (self.is_loopback and not self.keys)
        return self.web

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
    def _require_proxies(self) -> Self:
        if self.trusted_proxies:
            return self
        if self.proxy_header:
            why = "anybody could send this header: name the proxies whose header counts in server.trusted_proxies"
            raise PydanticCustomError("one_setting", "see the context", {"setting": "proxy_header", "why": why})
        if self.public_url.startswith("https://"):
            why = "https is the work of a proxy: name its address in server.trusted_proxies, such as 127.0.0.1"
            raise PydanticCustomError("one_setting", "see the context", {"setting": "public_url", "why": why})
        return self

    @model_validator(mode="after")
    def _require_a_key(self) -> Self:
        if not self.is_loopback and not self.keys:
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
        default=0, ge=0, description="maximum tokens read from a text; 0 = as its folder says, else 128"
    )
    normalize: bool = Field(
        default=False, description="normalize the vectors of /embedding too; those of /v1/embeddings always are"
    )
    max_waiting: int = Field(default=16, ge=1, description="maximum queued requests; further ones get a 429")
