"""Slack's streams without the bot around them: which calls open, end and claim them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

import pytest
from aiohttp import web

from bot.adapters.slack.client import identify, web_api
from bot.adapters.slack.messenger import SlackMessenger
from bot.adapters.slack.metadata import reply_metadata
from bot.adapters.slack.streams import SlackStreams
from bot.delivery.markdown.format import Rendered
from bot.domain import Action, ChannelKey, Controls
from bot.errors import AppendLimited, PlatformUnavailable, RateLimited
from tests.harness.fakes import ManualClock
from tests.harness.platform import Fault
from tests.harness.servers.slack import AskingInChats

STOP: Controls = frozenset({Action.STOP})
RETRY: Controls = frozenset({Action.RETRY})


@dataclass
class Chats:
    """Streams, with the ids that a database has of replies."""

    server: AskingInChats
    streams: SlackStreams
    messenger: SlackMessenger
    clock: ManualClock
    recorded: set[str]

    async def ask(self, asker: str = "general") -> tuple[ChannelKey, str]:
        """Return the thread of a new question, and its id."""
        question = await self.server.say("why?", channel=asker)
        message = self.server.workspace.messages[question]
        return ChannelKey("slack", message.channel, message.thread), question

    async def begin(self, channel: ChannelKey, question: str, nonce: str = "n0") -> str:
        text = Rendered("…", ("markdown",), stable=0)
        return await self.messenger.send(channel, text, reply_to=question, controls=STOP, nonce=nonce)

    async def grow(self, channel: ChannelKey, message: str, text: str) -> None:
        rendered = Rendered(text, ("markdown",), stable=len(text))
        await self.messenger.edit(channel, message, rendered, controls=STOP)

    async def end(self, channel: ChannelKey, message: str, text: str) -> None:
        await self.messenger.edit(channel, message, Rendered(text, ("markdown",)), controls=RETRY)

    def session(self, channel: ChannelKey) -> str | None:
        return self.server.agents.sessions.get((channel.channel, str(channel.thread)))

    def is_stream(self, message: str) -> bool:
        return message in self.server.agents.open_streams


@pytest.fixture
async def chats() -> AsyncIterator[Chats]:
    clock, recorded = ManualClock(), set[str]()

    async def is_recorded(channel: ChannelKey, message: str) -> bool:
        return message in recorded

    async with AskingInChats() as server, web_api(server.settings()) as api:
        streams = SlackStreams(api, await identify(api), clock, is_recorded)
        yield Chats(server, streams, SlackMessenger(api, 1.3, streams), clock, recorded)
        assert server.violations == []


# Sessions


async def test_a_message_that_is_cut_shorter_leaves_slacks_stop_control_to_the_next_one(chats: Chats) -> None:
    channel, question = await chats.ask()
    first, second = await chats.begin(channel, question), await chats.begin(channel, question, "n1")
    await chats.grow(channel, first, "a sentence, and its second half")
    await chats.end(channel, first, "a sentence")
    assert not chats.is_stream(first)
    assert chats.session(channel) == "processing"
    await chats.end(channel, second, "and its second half")
    assert chats.session(channel) == "active"


async def unavailable(edit: Awaitable[None]) -> bool:
    """Return whether an edit has to be repeated."""
    try:
        await edit
    except PlatformUnavailable:
        return True
    return False


async def test_an_edit_is_repeated_until_the_session_ends(chats: Chats) -> None:
    channel, question = await chats.ask()
    message = await chats.begin(channel, question)
    chats.server.agents.lifetime = -1.0
    chats.server.script = lambda number, name: Fault("500") if name == "agents.sessions.setStatus" else None
    assert await unavailable(chats.grow(channel, message, "one two"))
    chats.server.script = lambda number, name: None
    assert not await unavailable(chats.grow(channel, message, "one two"))
    assert chats.session(channel) == "active"


async def test_a_session_that_slack_does_not_end_delays_no_answer_for_ever(chats: Chats) -> None:
    channel, question = await chats.ask()
    message = await chats.begin(channel, question)
    chats.server.agents.lifetime = -1.0
    chats.server.script = lambda number, name: Fault("500") if name == "agents.sessions.setStatus" else None
    attempts = 1
    while await unavailable(chats.end(channel, message, "the answer")):
        attempts += 1
    assert attempts == 4
    assert chats.server.seen()[-1].markdown == "the answer"
    chats.server.script = lambda number, name: None
    await chats.end(channel, message, "the answer")
    assert chats.session(channel) == "active"


async def test_the_session_of_a_start_that_was_given_up_is_ended(chats: Chats) -> None:
    channel, question = await chats.ask()
    chats.server.script = lambda number, name: Fault("500") if name == "chat.startStream" else None
    with pytest.raises(PlatformUnavailable):
        await chats.begin(channel, question)
    assert chats.session(channel) == "processing"
    text = Rendered("the whole answer", ("markdown",))
    await chats.messenger.send(channel, text, reply_to=question, controls=RETRY, nonce="n0")
    assert chats.session(channel) == "active"


@pytest.mark.parametrize("ended", [True, False])
async def test_a_stream_that_is_deleted_leaves_no_session(chats: Chats, *, ended: bool) -> None:
    channel, question = await chats.ask()
    message = await chats.begin(channel, question)
    if ended:
        chats.server.agents.lifetime = -1.0
    await chats.messenger.delete(channel, message)
    assert message not in chats.server.workspace.messages
    assert chats.session(channel) == "active"


# Claims


async def test_a_start_in_another_thread_delays_no_claim_and_one_in_this_thread_does(chats: Chats) -> None:
    held = asyncio.Event()
    (here, _), (elsewhere, other) = await chats.ask(), await chats.ask()
    assert here.channel == elsewhere.channel
    orphans = [
        str(chats.server.agents.start({"channel": each.channel, "thread_ts": each.thread})["ts"])
        for each in (here, elsewhere)
    ]

    async def hold(request: web.Request) -> None:
        if request.path.endswith("chat.startStream"):
            await held.wait()

    chats.server.gate.guard = hold
    starting = asyncio.create_task(chats.begin(elsewhere, other))
    await chats.server.until(lambda: "agents.sessions.setStatus" in chats.server.calls and chats.server.is_quiet)
    assert await chats.streams.claim(here, orphans[0], reply_metadata("a"))
    with pytest.raises(PlatformUnavailable):
        await chats.streams.claim(elsewhere, orphans[1], reply_metadata("b"))
    held.set()
    assert not await chats.streams.claim(elsewhere, await starting, reply_metadata("b"))
    assert await chats.streams.claim(elsewhere, orphans[1], reply_metadata("b"))


async def test_a_claim_can_be_repeated_by_the_same_message_only(chats: Chats) -> None:
    channel, question = await chats.ask()
    orphan = str(chats.server.agents.start({"channel": channel.channel, "thread_ts": channel.thread})["ts"])
    mine, other = reply_metadata("a", answers=question), reply_metadata("b", answers=question)
    assert await chats.streams.claim(channel, orphan, mine)
    assert await chats.streams.claim(channel, orphan, mine)
    assert not await chats.streams.claim(channel, orphan, other)


async def test_a_claimed_stream_gets_its_nonce(chats: Chats) -> None:
    channel, question = await chats.ask()
    orphan = str(chats.server.agents.start({"channel": channel.channel, "thread_ts": channel.thread})["ts"])
    mine = reply_metadata("a", answers=question)
    assert await chats.streams.claim(channel, orphan, mine)
    await chats.end(channel, orphan, "the answer")
    assert chats.server.workspace.messages[orphan].metadata == mine


async def test_a_message_of_a_reply_that_is_known_is_not_claimed(chats: Chats) -> None:
    channel, question = await chats.ask()
    known = str(chats.server.agents.start({"channel": channel.channel, "thread_ts": channel.thread})["ts"])
    chats.recorded.add(known)
    assert not await chats.streams.claim(channel, known, reply_metadata("a", answers=question))


# Refusals


@pytest.mark.parametrize(
    ("code", "same_thread", "same_channel", "elsewhere"),
    [
        ("thread_not_found", True, True, True),
        ("user_not_found", True, True, True),
        ("channel_type_not_supported", False, False, True),
        ("a_code_of_next_year", False, False, True),
        ("not_authorized", False, False, False),
        ("missing_scope", False, False, False),
    ],
)
async def test_a_refusal_is_remembered_as_far_as_it_goes_and_for_an_hour(
    chats: Chats, code: str, *, same_thread: bool, same_channel: bool, elsewhere: bool
) -> None:
    async def is_asked_for(channel: ChannelKey, question: str) -> bool:
        before = chats.server.calls.count("chat.startStream")
        await chats.begin(channel, question, f"n{len(chats.server.calls)}")
        return chats.server.calls.count("chat.startStream") > before

    chats.server.refused["chat.startStream"] = code
    place = await chats.ask()
    assert await is_asked_for(*place)
    assert await is_asked_for(*place) is same_thread
    assert await is_asked_for(*await chats.ask()) is same_channel
    assert await is_asked_for(*await chats.ask("Ann")) is elsewhere
    del chats.server.refused["chat.startStream"]
    await chats.clock.advance(3601.0)
    assert chats.is_stream(await chats.begin(*place, "last"))


# Limits


async def test_streams_that_grow_for_long_are_counted_by_their_ends(chats: Chats) -> None:
    channel, question = await chats.ask()
    opened = [await chats.begin(channel, question, f"first {number}") for number in range(18)]
    assert all(map(chats.is_stream, opened))
    await chats.clock.advance(120.0)
    assert not chats.is_stream(await chats.begin(channel, question, "while all are open"))
    for message in opened[:10]:
        await chats.end(channel, message, "the end")
    assert not chats.is_stream(await chats.begin(channel, question, "after ten ends"))
    await chats.clock.advance(61.0)
    assert chats.is_stream(await chats.begin(channel, question, "a minute later"))


@pytest.mark.parametrize("method", ["chat.appendStream", "chat.stopStream"])
async def test_only_a_limit_of_appends_is_one_of_appends(chats: Chats, method: str) -> None:
    channel, question = await chats.ask()
    message = await chats.begin(channel, question)
    await chats.grow(channel, message, "one two")
    chats.server.per_minute = {method: 0}
    change = chats.grow if method == "chat.appendStream" else chats.end
    with pytest.raises(RateLimited) as limited:
        await change(channel, message, "one two three four")
    assert isinstance(limited.value, AppendLimited) is (method == "chat.appendStream")
