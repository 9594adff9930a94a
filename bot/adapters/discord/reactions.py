"""Reactions to the bot's messages, which are votes on its answers."""

from collections.abc import Awaitable, Callable
from functools import partial

import discord

from bot.adapters.discord.parse import PLATFORM, parse_user
from bot.chat.feedback import vote_of
from bot.chat.intake import Intake
from bot.domain import Author, ChannelKey, Vote

FindChannel = Callable[[int, bool], Awaitable[ChannelKey | None]]
Put = Callable[[Callable[[], Awaitable[None]]], None]


class DiscordReactions:
    """Event handlers, which `put` each vote into the queue of events; `find` gets a channel's id and whether it is direct."""

    def __init__(self, intake: Intake, find: FindChannel, put: Put) -> None:
        self._intake = intake
        self._find = find
        self._put = put
        self.events = (self.on_raw_reaction_add, self.on_raw_reaction_remove)

    async def on_raw_reaction_add(self, event: discord.RawReactionActionEvent) -> None:
        self._take(event, is_added=True)

    async def on_raw_reaction_remove(self, event: discord.RawReactionActionEvent) -> None:
        self._take(event, is_added=False)

    def _take(self, event: discord.RawReactionActionEvent, *, is_added: bool) -> None:
        vote = vote_of(event.emoji.name or "") if event.emoji.is_unicode_emoji() else None
        if vote is not None:
            self._put(partial(self._vote, event, vote, is_added=is_added))

    async def _vote(self, event: discord.RawReactionActionEvent, vote: Vote, *, is_added: bool) -> None:
        channel = await self._find(event.channel_id, event.guild_id is None)
        by = Author(PLATFORM, str(event.user_id), "") if event.member is None else parse_user(event.member)
        if channel is not None:
            await self._intake.on_reaction(channel, str(event.message_id), vote, by, is_added=is_added)
