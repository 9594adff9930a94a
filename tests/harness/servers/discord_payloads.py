"""Discord's JSON, as far as its library reads it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from discord.utils import snowflake_time

Json = dict[str, Any]

PERMISSIONS = str(2**51 - 1)
USE_EXTERNAL_APPS = 1 << 50
READ_HISTORY = 1 << 16
MANAGE_CHANNELS = str(1 << 4)
ADMINISTRATOR = 1 << 3
THREADS = 1 << 35 | 1 << 38  # create public ones, send messages in threads
# See channels, send messages, read their history.
MEMBERS = str(1 << 10 | 1 << 11 | 1 << 16)


def user(id: int, name: str, is_bot: bool = False) -> Json:
    return {
        "id": str(id),
        "username": name,
        "discriminator": "0",
        "global_name": name,
        "avatar": None,
        "bot": is_bot,
        "public_flags": 0,
    }


def member(roles: list[int]) -> Json:
    return {
        "roles": [str(role) for role in roles],
        "joined_at": "2024-01-01T00:00:00+00:00",
        "nick": None,
        "avatar": None,
        "deaf": False,
        "mute": False,
        "flags": 0,
        "permissions": PERMISSIONS,
    }


def role(id: int, name: str, tags: Json | None = None, permissions: str = PERMISSIONS) -> Json:
    return {
        "id": str(id),
        "name": name,
        "permissions": permissions,
        "position": 0,
        "color": 0,
        "colors": {"primary_color": 0, "secondary_color": None, "tertiary_color": None},
        "hoist": False,
        "managed": tags is not None,
        "mentionable": True,
        "flags": 0,
        **({"tags": tags} if tags is not None else {}),
    }


def text_channel(id: int, guild: int, name: str, last: int | None, managers: Sequence[int] = ()) -> Json:
    return {
        "id": str(id),
        "type": 0,
        "guild_id": str(guild),
        "name": name,
        "position": 0,
        "permission_overwrites": [
            {"id": str(person), "type": 1, "allow": MANAGE_CHANNELS, "deny": "0"} for person in managers
        ],
        "nsfw": False,
        "parent_id": None,
        "topic": None,
        "rate_limit_per_user": 0,
        "last_message_id": str(last) if last else None,
    }


def thread(id: int, guild: int, parent: int, name: str, owner: int, last: int | None) -> Json:
    return {
        "id": str(id),
        "type": 11,
        "guild_id": str(guild),
        "parent_id": str(parent),
        "owner_id": str(owner),
        "name": name,
        "message_count": 0,
        "member_count": 1,
        "rate_limit_per_user": 0,
        "last_message_id": str(last) if last else None,
        "thread_metadata": {
            "archived": False,
            "auto_archive_duration": 1440,
            "archive_timestamp": "2024-01-01T00:00:00+00:00",
            "locked": False,
        },
    }


def direct_channel(id: int, recipient: Json) -> Json:
    return {"id": str(id), "type": 1, "recipients": [recipient], "last_message_id": None}


def guild(id: int, name: str, channels: list[Json], threads: list[Json], roles: list[Json], me: Json) -> Json:
    return {
        "id": str(id),
        "name": name,
        "icon": None,
        "owner_id": "1",
        "roles": roles,
        "emojis": [],
        "stickers": [],
        "features": [],
        "channels": channels,
        "threads": threads,
        "members": [me],
        "member_count": 5,
        "verification_level": 0,
        "default_message_notifications": 0,
        "explicit_content_filter": 0,
        "mfa_level": 0,
        "premium_tier": 0,
        "nsfw_level": 0,
        "preferred_locale": "en-US",
        "system_channel_flags": 0,
        "permissions": PERMISSIONS,
    }


def message(id: int, channel: int, author: Json, content: str, **more: Any) -> Json:
    return {
        "id": str(id),
        "channel_id": str(channel),
        "author": author,
        "content": content,
        "timestamp": snowflake_time(id).isoformat(),
        "edited_timestamp": None,
        "tts": False,
        "mention_everyone": False,
        "mentions": [],
        "mention_roles": [],
        "attachments": [],
        "embeds": [],
        "components": [],
        "pinned": False,
        "type": 0,
        "flags": 0,
        **more,
    }


def interaction(id: int, application: int, kind: int, token: str, data: Json, **where: Any) -> Json:
    return {
        "id": str(id),
        "application_id": str(application),
        "type": kind,
        "token": token,
        "version": 1,
        "data": data,
        "attachment_size_limit": 1000,
        "entitlements": [],
        **where,
    }


def application(id: int, owner: Json, flags: int) -> Json:
    return {
        "id": str(id),
        "name": "bot",
        "description": "",
        "icon": None,
        "bot_public": True,
        "bot_require_code_grant": False,
        "owner": owner,
        "verify_key": "",
        "flags": flags,
        "interactions_endpoint_url": None,
    }


def now() -> str:
    return datetime.now(UTC).isoformat()
