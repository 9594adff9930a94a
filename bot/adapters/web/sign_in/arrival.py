"""Where a request comes from: a browser on this machine, or one elsewhere that uses the public address."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers

# Names under which a browser reaches this machine only.
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# A proxy adds them: its clients are on other machines.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_PORTS = {"http": ":80", "https": ":443"}

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a request came.

    `origin` is that of the pages that may send it, `client` the address of the browser as far as
    trusted proxies tell, and `is_proxied` whether such a proxy passed the request on.
    """

    is_local: bool
    origin: str
    client: str
    is_proxied: bool = False


class Gate:
    """Tells requests of this machine from those of browsers elsewhere.

    A request counts as this machine's if its peer and its Host are loopback's and no proxy has
    passed it on.  A peer that is a trusted proxy never counts: it may hide what it passes on.
    """

    def __init__(self, public_url: str = "", trusted_proxies: Sequence[str] = ()) -> None:
        self._public_url = public_url
        scheme, _, host = public_url.partition("://")
        # A browser leaves the usual port out, a proxy may name it.
        self._hosts = (
            {host, host.removesuffix(_PORTS.get(scheme, "")), host + _PORTS.get(scheme, "")} if host else set()
        )
        self._proxies = [ipaddress.ip_network(network) for network in trusted_proxies]

    def arrival(self, headers: Headers, peer: Sequence[object] | None) -> Arrival | None:
        """Return how a request came; None if it came under no name of these pages."""
        address = None if peer is None else _address(str(peer[0]))
        if address is None:
            return None
        host, is_proxied = headers.get("Host", "").lower(), self._is_proxy(address)
        if host in self._hosts and (is_proxied or not self._public_url.startswith("https:")):
            client = self._browser(headers) if is_proxied else address
            return Arrival(False, self._public_url, str(client or address), is_proxied)
        is_local = address.is_loopback and not is_proxied and not any(map(headers.get, _FORWARDED))
        if is_local and _name(host) in _LOOPBACK:
            return Arrival(is_local=True, origin=f"http://{host}", client=str(address))
        return None

    def _browser(self, headers: Headers) -> _Address | None:
        """Return the last address in X-Forwarded-For that is no trusted proxy: those before it can be made up."""
        for text in reversed(",".join(headers.getlist("X-Forwarded-For")).split(",")):
            address = _address(text.strip())
            if address is None or not self._is_proxy(address):
                return address
        return None

    def _is_proxy(self, address: _Address) -> bool:
        return any(address in network for network in self._proxies)


def _address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _name(host: str) -> str:
    """Return a Host header without its port.

    >>> _name("localhost:8000"), _name("[::1]:8000"), _name("[::1]")
    ('localhost', '[::1]', '[::1]')
    """
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
