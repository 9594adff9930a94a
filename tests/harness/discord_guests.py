"""What tests of Discord ask about places where the bot is no member."""

import asyncio

from bot.domain import ChannelKey, Status
from tests.harness.discord_harness import DiscordBot
from tests.harness.platform import TIMEOUT
from tests.harness.servers.discord import DiscordPlatform

PLACE = "elsewhere"


async def answered(bot: DiscordBot, *texts: str, place: str = PLACE) -> None:
    await bot.shows(*texts, channel=place)
    await ended(bot, place)


async def ended(bot: DiscordBot, place: str = PLACE, *, asked: int = 0) -> None:
    """Wait until the model was `asked` so often, and no question of a place is answered any more."""
    await bot.engine.asked(asked)
    async with asyncio.timeout(TIMEOUT):
        while {Status.OPEN, Status.ANSWERED} & {*await statuses(bot, place)}:
            pass


def key(platform: DiscordPlatform, place: str = PLACE) -> ChannelKey:
    return ChannelKey("discord", str(platform.guest_place(place, in_server=False)), "guest")


async def statuses(bot: DiscordBot, place: str = PLACE) -> list[Status]:
    return [each.status for each in await bot.harness.store.said_in(key(bot.platform, place), 10)]
