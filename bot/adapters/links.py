"""Links of all platforms: words, and the address behind them."""

import re

_SCHEME = re.compile("^(https?://|mailto:|tel:)", re.IGNORECASE)


def shows_address(words: str, url: str) -> bool:
    """Return whether the words of a link are its address.

    >>> [shows_address(words, "https://example.org/this/") for words in ("example.org/this", "this")]
    [True, False]
    """
    return _bare(words) == _bare(url)


def _bare(url: str) -> str:
    """Return an address as people write it: without its scheme and a slash at its end."""
    return _SCHEME.sub("", url.strip()).rstrip("/")
