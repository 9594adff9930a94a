"""Files of Slack messages: what events tell of them, and their bytes."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import yarl

from bot.adapters.download import download
from bot.adapters.proxy import find_proxy
from bot.adapters.slack.settings import SlackSection
from bot.domain import Attachment

# The mode of a file that was deleted, and of one that is hidden in a workspace without a plan.
_DELETED, _HIDDEN = "tombstone", "hidden_by_limit"


def files_of(message: Mapping[str, Any]) -> tuple[Attachment, ...]:
    """Return the files of a message, without those that were deleted."""
    return tuple(
        Attachment(
            _text(each, "name") or _text(each, "title"),
            _text(each, "mimetype"),
            size if type(size := each.get("size")) is int else 0,
            "" if each.get("mode") == _HIDDEN else _text(each, "url_private_download") or _text(each, "url_private"),
            id=_text(each, "id"),
        )
        for each in _listed(message)
        if each.get("mode") != _DELETED
    )


def has_lost_file(message: Mapping[str, Any]) -> bool:
    """Return whether a file of a message was deleted, which Slack does not call an edit."""
    return any(each.get("mode") == _DELETED for each in _listed(message))


def fetch_file(settings: SlackSection, file: Attachment) -> AsyncIterator[bytes]:
    """Yield the bytes of a file; errors as those of `download`."""
    proxy = find_proxy("slack", settings.proxy.get_secret_value(), settings.api_url)
    token = settings.bot_token.get_secret_value() if settings.bot_token else ""
    return download(
        file.source,
        _origins(settings.api_url),
        proxy=proxy,
        headers={"Authorization": f"Bearer {token}"},
        # Without the scope files:read Slack sends the page where people log in.
        is_page_refused=not file.media_type.startswith("text/html"),
    )


def _origins(api_url: str) -> list[str]:
    """Return where Slack has its files.

    >>> _origins("https://slack-gov.com/api/")
    ['https://slack-gov.com', 'https://files.slack-gov.com']
    """
    api = yarl.URL(api_url).origin()
    return [str(api), str(api.with_host(f"files.{api.host}"))]


def _listed(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    files = message.get("files")
    return [each for each in files if isinstance(each, dict)] if isinstance(files, list) else []


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""
