"""What a call to a loopback platform does, and in which channel."""

from typing import Any

from aiohttp import web


async def call_of(name: str, request: web.Request) -> tuple[str, str]:
    """Return what the call does and its channel's id; a poll has none."""
    match name:
        case "discord":
            path = request.path.removeprefix("/api/v10/").split("/")
            if path[0] != "channels" or path[2:3] != ["messages"]:
                return "another", "none"
            return {"GET": "catch-up", "POST": "send", "PATCH": "edit"}.get(request.method, "another"), path[1]
        case "telegram":
            method = request.match_info["method"]
            if method == "getUpdates":
                return "catch-up", ""
            operation = {"sendMessage": "send", "editMessageText": "edit"}.get(method, "another")
            return operation, str((await request.post()).get("chat_id", "none"))
    method = request.match_info.get("method", "response_url")
    operations = {"chat.postMessage": "send", "chat.update": "edit", "conversations.history": "catch-up"}
    if method not in operations:
        return "another", "none"
    is_json = request.content_type == "application/json"
    arguments: Any = await request.json() if is_json else {**request.query, **await request.post()}
    return operations[method], str(arguments["channel"])


def place_of(platform: Any, room: str) -> str:
    """Return the platform's id of a channel."""
    match platform.name:
        case "discord":
            return str(platform.channel(room))
        case "telegram":
            return str(platform.group(room).id)
        case _:
            return str(platform.workspace.channel(room))


def messages_of(platform: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = platform.workspace.messages if platform.name == "slack" else platform.messages
    return found


def channel_of(name: str, message: Any) -> str:
    match name:
        case "discord":
            return str(message["channel_id"])
        case "telegram":
            return str(message.chat.id)
        case _:
            return str(message.channel)
