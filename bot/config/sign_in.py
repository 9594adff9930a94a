"""Settings of the sign-in to the pages: their address, the proxies before them, OpenID Connect."""

import ipaddress
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError

from bot.config.section import Section, split_list

# Platforms of people who signed in without a chat platform, in ids such as "oidc:mei".
OIDC_PLATFORM = "oidc"
PROXY_PLATFORM = "proxy"


def is_loopback(host: str) -> bool:
    """Return whether a name or an address is that of this machine.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("10.0.0.1"), is_loopback("example.org")
    (True, True, False, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_origin(url: str) -> str:
    """Return an address without its path, in lower case.

    >>> _check_origin("https://Bot.example.org/"), _check_origin("")
    ('https://bot.example.org', '')
    """
    if not url:
        return url
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_good = False
    if not is_good or parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError('it is not written "https://host" or "https://host:port", without a path')
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _check_network(network: str) -> str:
    try:
        ipaddress.ip_network(network)
    except ValueError:
        raise ValueError(f'{network!r} is not an address or a network, as in "127.0.0.1" or "10.0.0.0/8"') from None
    return network


def _check_issuer(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    except ValueError:
        is_good = False
    if url and not (is_good and parts.hostname):
        raise ValueError("it must begin with https://; http:// is for a server on this machine only")
    return url.rstrip("/")


Origin = Annotated[str, AfterValidator(_check_origin)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_check_network)], ...], BeforeValidator(split_list)]
Issuer = Annotated[str, AfterValidator(_check_issuer)]
Words = Annotated[tuple[str, ...], BeforeValidator(split_list)]


class OidcSection(Section):
    """Sign-in to the pages by OpenID Connect, beside one-time links; needs server.public_url."""

    issuer: Issuer = Field(default="", description='address of the provider: "https://id.example.org"; empty = off')
    client_id: str = Field(
        default="", description="id of the bot at the provider; its redirect address is PUBLIC_URL/web/oidc/callback"
    )
    client_secret: SecretStr | None = Field(default=None, description="secret of the bot at the provider")
    scopes: Words = Field(default=("openid", "profile"), description="what the provider is asked for")
    claim: str = Field(default="groups", min_length=1, description="claim whose values say what a person may do")
    users: Words = Field(
        default=(), description="values of the claim that may chat; empty = all whom the provider knows"
    )
    admins: Words = Field(default=(), description="values of the claim that may see the panel and change channels")
    operators: Words = Field(default=(), description="values of the claim that may change all settings in the panel")

    @model_validator(mode="after")
    def _require_a_client(self) -> Self:
        for setting in ("client_id", "client_secret") if self.issuer else ():
            if not getattr(self, setting):
                context = {"setting": setting, "why": f"it is needed with oidc.issuer{_where(setting)}"}
                raise PydanticCustomError("one_setting", "see the context", context)
        return self


def _where(setting: str) -> str:
    return ": set BOT_OIDC__CLIENT_SECRET, or a secret file" if setting == "client_secret" else ""
