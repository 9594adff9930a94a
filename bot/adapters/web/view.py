"""Exchanges and conversations as the page gets them."""

from typing import Any

from bot.adapters.web.markdown import render_html
from bot.adapters.web.messenger import Message
from bot.chat.i18n import Translate, finish_note
from bot.delivery.view import PLACEHOLDER
from bot.domain import Exchange, FinishReason, Kind, Status, Vote

# Characters of a conversation's title.
_TITLE = 60


def exchange_view(
    exchange: Exchange,
    reply: dict[str, Message],
    translate: Translate,
    *,
    asks_for_votes: bool = False,
    vote: Vote | None = None,
) -> dict[str, Any]:
    """Return a question with its reply: the messages in memory while it grows, then what is stored."""
    is_open = exchange.status is Status.OPEN
    answer, notes = exchange.answer, []
    if is_open or answer is None:
        text = "\n\n".join(message.text for message in reply.values())
        if not is_open and not text:
            notes.append(translate("Something went wrong while I was answering. Please try again."))
    else:
        text = answer.text
        notes += [note for note in (answer.notice, finish_note(answer.reason, translate)) if note]
        if not text and not notes:
            notes.append(translate("I have no answer to that. Please rephrase your question."))
    is_waiting = is_open and text in ("", PLACEHOLDER)
    parts = list(reply) or list(exchange.parts)
    return {
        "id": exchange.message.id,
        "question": exchange.message.text,
        "files": [{"name": file.name, "size": file.size, "text": ""} for file in exchange.message.files],
        "html": "" if is_waiting else render_html(text),
        "text": "" if is_waiting else text,
        "notice": render_html("\n\n".join(notes)) if notes else "",
        "open": is_open,
        "chat": exchange.kind is Kind.CHAT,
        "reply": parts[-1] if parts else None,
        "rated": asks_for_votes
        and answer is not None
        and bool(answer.text)
        and answer.reason is not FinishReason.ERROR,
        "vote": vote.value if vote is not None else "",
    }


def title(exchange: Exchange) -> str:
    """Return the title of a conversation that began with this exchange."""
    message = exchange.message
    line = " ".join(message.text.split()) or ", ".join(file.name for file in message.files)
    return line if len(line) <= _TITLE else f"{line[: _TITLE - 1]}…"
