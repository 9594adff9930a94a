"""The HTTP proxy of a platform: its setting, else the one of the environment."""

from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]  # not in typeshed

from bot.errors import ConfigError

_SCHEMES = {"wss": "https", "ws": "http"}


def find_proxy(platform: str, setting: str, url: str, *, allow_socks: bool = False) -> str | None:
    """Return the URL of the proxy to `url`, or None.

    The setting wins; else HTTPS_PROXY or HTTP_PROXY, then ALL_PROXY, except for this machine and the
    hosts in NO_PROXY.

    Raises:
        ConfigError: The environment names a proxy of a kind that cannot be used.
    """
    if setting:
        return setting
    parts = urlsplit(url)
    host, scheme = parts.hostname or "", _SCHEMES.get(parts.scheme, parts.scheme)
    proxies = getproxies_environment()
    name = scheme if scheme in proxies else "all"
    proxy = proxies.get(name)
    if not proxy or _is_loopback(host) or proxy_bypass_environment(host, proxies):
        return None
    if "://" not in proxy:
        return f"http://{proxy}"
    kind = proxy.partition("://")[0].lower()
    if kind in ("http", "https") or (allow_socks and kind.startswith("socks")):
        if not _is_url(proxy):
            raise ConfigError("the environment", [f"{name.upper()}_PROXY: not a URL; it looks like http://proxy:3128"])
        return proxy
    mistake = (
        f"{name.upper()}_PROXY: a proxy of kind {kind}:// cannot be used for {platform}; set HTTPS_PROXY or "
        f'adapters.{platform}.proxy to an HTTP proxy, as in "http://proxy:3128"'
    )
    raise ConfigError("the environment", [mistake])


def _is_url(proxy: str) -> bool:
    try:
        parts = urlsplit(proxy)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
