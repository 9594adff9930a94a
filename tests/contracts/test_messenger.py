"""The contract of Messenger, for every platform and the fake."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from bot.adapters.discord.http import configure_library, rest_client
from bot.adapters.discord.messenger import DiscordMessenger
from bot.adapters.slack.client import web_api
from bot.adapters.slack.messenger import SlackMessenger
from bot.adapters.telegram.client import open_bot
from bot.adapters.telegram.messenger import TelegramMessenger
from bot.adapters.web.messenger import WebMessenger
from bot.delivery.messenger import Messenger
from bot.domain import Action, ChannelKey, Controls
from bot.errors import MessageGone
from tests.harness.fakes import FakeKnownMessages, FakeMessenger, ManualClock
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import TOKEN
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import TelegramPlatform

NONE: Controls = frozenset()


@dataclass(frozen=True, slots=True)
class MessengerSetup:
    """A Messenger and the state of its platform."""

    messenger: Messenger
    channel: ChannelKey
    question: str  # the id of a message to reply to
    shown: Callable[[], Awaitable[list[str]]]  # texts of the bot's messages
    delete: Callable[[str], Awaitable[None]]  # deletes as another user
    forget_nonces: Callable[[], None] = lambda: None
    restarted: Callable[[], Messenger] | None = None  # where the messenger remembers what it sent


async def fake() -> AsyncIterator[MessengerSetup]:
    messenger = FakeMessenger(ManualClock())
    channel = ChannelKey("fake", "c1")

    async def shown() -> list[str]:
        return messenger.texts(channel)

    async def delete(message_id: str) -> None:
        del messenger.messages[message_id]

    yield MessengerSetup(messenger, channel, "q1", shown, delete)


async def slack() -> AsyncIterator[MessengerSetup]:
    async with SlackServer() as server, web_api(server.settings()) as api:
        question = await server.say("question")
        channel = ChannelKey("slack", server.workspace.channel("general"), question)

        async def shown() -> list[str]:
            return [seen.markdown for seen in server.seen() if seen.author == "bot"]

        async def delete(message_id: str) -> None:
            del server.workspace.messages[message_id]

        yield MessengerSetup(SlackMessenger(api, 1.3), channel, question, shown, delete)


async def telegram() -> AsyncIterator[MessengerSetup]:
    async with TelegramPlatform() as server, await open_bot(server.settings()) as bot:
        question = await server.say("question")
        channel = ChannelKey("telegram", str(server.group("general").id))

        async def moved(channel: ChannelKey, to: str) -> None:
            raise AssertionError("no group migrates here")

        async def shown() -> list[str]:
            return [seen.visible for seen in server.seen() if seen.author == "bot"]

        def opened() -> TelegramMessenger:
            return TelegramMessenger(bot, server.settings(), moved, FakeKnownMessages())

        yield MessengerSetup(opened(), channel, question, shown, server.delete, restarted=opened)


async def discord() -> AsyncIterator[MessengerSetup]:
    async with DiscordPlatform() as server:
        configure_library(server.settings())
        question = await server.say("question")
        messenger = DiscordMessenger(1.2, 30.0)

        async def shown() -> list[str]:
            return [seen.markdown for seen in server.seen() if seen.author == "bot"]

        async with rest_client(server.settings(), ManualClock()) as messenger.client:
            await messenger.client.login(TOKEN)
            yield MessengerSetup(
                messenger,
                ChannelKey("discord", str(server.channel("general"))),
                question,
                shown,
                server.delete,
                server.forget_nonces,
            )


async def web() -> AsyncIterator[MessengerSetup]:
    messenger = WebMessenger(lambda message: None)
    channel = ChannelKey("web", "0" * 32, "1" * 32)

    async def shown() -> list[str]:
        return [message.text for message in messenger.messages.values()]

    async def delete(message_id: str) -> None:
        await messenger.delete(channel, message_id)

    yield MessengerSetup(messenger, channel, "2" * 32, shown, delete)


PLATFORMS = {"fake": fake, "discord": discord, "telegram": telegram, "slack": slack, "web": web}


@pytest.fixture(params=PLATFORMS)
async def platform(request: pytest.FixtureRequest) -> AsyncIterator[MessengerSetup]:
    async for opened in PLATFORMS[request.param]():
        yield opened


async def send(platform: MessengerSetup, text: str, nonce: str = "1.0.0", controls: Controls = NONE) -> str:
    messenger = platform.messenger
    rendered = messenger.format.render(text)
    return await messenger.send(platform.channel, rendered, reply_to=platform.question, controls=controls, nonce=nonce)


async def edit(platform: MessengerSetup, message_id: str, text: str, controls: Controls = NONE) -> None:
    messenger = platform.messenger
    await messenger.edit(platform.channel, message_id, messenger.format.render(text), controls=controls)


async def test_messages_are_shown_in_order(platform: MessengerSetup) -> None:
    first, second = await send(platform, "one", "1.0.0"), await send(platform, "two", "1.1.0")
    assert first != second
    assert await platform.shown() == ["one", "two"]


async def test_a_message_that_an_earlier_run_may_have_sent_is_looked_for(platform: MessengerSetup) -> None:
    messenger = platform.messenger
    copy = messenger.format.render("copy")
    ids = []
    for may_exist in (False, True):
        ids.append(
            await messenger.send(
                platform.channel,
                copy,
                reply_to=platform.question,
                controls=NONE,
                nonce="3.1.4",
                may_exist=may_exist,
            )
        )
        platform.forget_nonces()
        messenger = platform.restarted() if platform.restarted else messenger
    assert ids[0] == ids[1]
    assert await platform.shown() == ["copy"]


async def test_an_edit_replaces_the_text(platform: MessengerSetup) -> None:
    message = await send(platform, "…")
    await edit(platform, message, "你好，世界 👩‍👩‍👧‍👦")
    assert await platform.shown() == ["你好，世界 👩‍👩‍👧‍👦"]


async def test_an_edit_may_change_only_the_controls(platform: MessengerSetup) -> None:
    message = await send(platform, "text", controls=frozenset({Action.STOP}))
    await edit(platform, message, "text", controls=frozenset({Action.RETRY}))
    await edit(platform, message, "text")
    assert await platform.shown() == ["text"]


async def test_an_edit_that_changes_nothing_is_not_an_error(platform: MessengerSetup) -> None:
    message = await send(platform, "text")
    await edit(platform, message, "text")
    assert await platform.shown() == ["text"]


async def test_a_message_of_the_maximum_length_is_accepted(platform: MessengerSetup) -> None:
    longest = "字" * platform.messenger.format.limit
    message = await send(platform, longest)
    await edit(platform, message, "好" + longest[1:])
    assert await platform.shown() == ["好" + longest[1:]]


async def test_an_edit_of_a_deleted_message_raises_message_gone(platform: MessengerSetup) -> None:
    message = await send(platform, "text")
    await platform.delete(message)
    with pytest.raises(MessageGone):
        await edit(platform, message, "more text")


async def test_a_message_can_be_deleted_once(platform: MessengerSetup) -> None:
    message = await send(platform, "text")
    await platform.messenger.delete(platform.channel, message)
    assert await platform.shown() == []
    with pytest.raises(MessageGone):
        await platform.messenger.delete(platform.channel, message)


async def test_plain_text_fits_and_keeps_every_word(platform: MessengerSetup) -> None:
    format = platform.messenger.format
    plain = format.plain("**bold** and `code`")
    assert "bold" in plain.text
    assert "code" in plain.text
    assert plain.entities == ()
    assert format.measure(plain) <= format.limit


async def test_the_limit_is_at_least_28_characters(platform: MessengerSetup) -> None:
    assert platform.messenger.format.limit >= 28
    assert platform.messenger.edit_interval(platform.channel) > 0
