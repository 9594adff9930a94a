"""A limit on failed attempts to sign in, with bounded memory and a bounded log."""

import ipaddress

import structlog

from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Failed attempts of one address in SECONDS, and the number of addresses in memory.
MOST_ATTEMPTS = 10
SECONDS = 60.0
MOST_ADDRESSES = 1_000
# Bits of an IPv6 address that one customer of a provider usually has for itself.
_IPV6_PREFIX = 64


class Attempts:
    """Failed attempts by address.

    Valid links are never counted, and cannot be guessed: this bounds the work and the log that
    others cause, and locks nobody out.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._ends = 0.0
        self._unlogged = 0
        self._next_log = 0.0

    def __len__(self) -> int:
        """Return the number of remembered addresses."""
        return len(self._counts)

    def are_too_many(self, client: str) -> bool:
        """Return whether this address has failed too often, or too many others have; a minute later it may again."""
        if self._clock.now() >= self._ends:
            self._counts, self._ends = {}, self._clock.now() + SECONDS
        count = self._counts.get(_network(client))
        return len(self._counts) >= MOST_ADDRESSES if count is None else count >= MOST_ATTEMPTS

    def failed(self, client: str, why: str) -> None:
        """Count a failure; at most one line in `SECONDS` is logged, with the number of failures since the last."""
        if not self.are_too_many(client):
            network = _network(client)
            self._counts[network] = self._counts.get(network, 0) + 1
        self._unlogged += 1
        if self._clock.now() >= self._next_log:
            log.warning("sign-in refused", why=why, count=self._unlogged)
            self._unlogged, self._next_log = 0, self._clock.now() + SECONDS


def _network(client: str) -> str:
    """Return what is counted as one address.

    >>> _network("2001:db8::1"), _network("192.0.2.7")
    ('2001:db8::/64', '192.0.2.7')
    """
    address = ipaddress.ip_address(client)
    return str(ipaddress.ip_network((client, _IPV6_PREFIX), strict=False)) if address.version == 6 else client
