"""The metadata of the bot's messages in Slack, by which a reply is found again."""

from collections.abc import Mapping
from typing import Any

# Type of the metadata that carries a message's nonce.
_EVENT_TYPE = "chatglm_reply"


def reply_metadata(nonce: str, *, answers: str | None = None, continues: str | None = None) -> dict[str, Any]:
    """Return the metadata of a message that `answers` a question, or `continues` the reply that begins with that id."""
    ids = {"answers": answers, "continues": continues}
    payload = {"nonce": nonce} | {name: id for name, id in ids.items() if id is not None}
    return {"event_type": _EVENT_TYPE, "event_payload": payload}


def nonce_in(message: Mapping[str, Any]) -> object:
    """Return the nonce that a message of the bot was sent with."""
    return payload_in(message).get("nonce")


def payload_in(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a message of the bot was sent with: `nonce`, and the id that it `answers` or `continues`.

    Messages of older versions have only the nonce; a copy of a deleted message has another one.
    """
    match message.get("metadata"):
        case {"event_type": str(kind), "event_payload": {"nonce": _}} if kind == _EVENT_TYPE:
            payload: Mapping[str, Any] = message["metadata"]["event_payload"]
            return payload
    return {}
