"""The manifest from which Slack creates the bot's app."""

from pathlib import Path

_BESIDE = Path(__file__).with_name("manifest.yaml")  # of an installation
_IN_CHECKOUT = Path(__file__).parents[3] / "docs" / "slack-manifest.yaml"


def manifest() -> str:
    """Return the manifest.

    >>> "socket_mode_enabled: true" in manifest()
    True
    """
    return (_BESIDE if _BESIDE.exists() else _IN_CHECKOUT).read_text(encoding="utf-8")
