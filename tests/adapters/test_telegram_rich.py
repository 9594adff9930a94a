"""Telegram's rich messages: tables, formulas and long answers as blocks, and the way back to entities."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import structlog
from aiohttp import web

from bot.adapters.telegram.client import open_bot
from bot.adapters.telegram.markup import LIMIT, TelegramFormat
from bot.adapters.telegram.messenger import TelegramMessenger
from bot.adapters.telegram.rich import RICH_LIMIT, RichFormat, plain_text, rich_message_of
from bot.adapters.telegram.rich_support import RichSupport
from bot.delivery.markdown.format import utf16_units
from bot.delivery.markdown.split import join, split
from bot.domain import Action, ChannelKey
from bot.errors import MarkupRefused, PlatformUnavailable
from tests.adapters.rich_answers import faults
from tests.chaos.hostile_texts import hostile_texts
from tests.harness.fakes import FakeKnownMessages, ManualClock
from tests.harness.harness import Harness, make_harness
from tests.harness.platform import Fault
from tests.harness.servers.telegram import UNCHANGED, Message, Refused, TelegramPlatform
from tests.harness.servers.telegram_rich import refused_message
from tests.harness.telegram_harness import done, running, texts

TABLE = "# Prices\n\n| item | price |\n|---|--:|\n| tea | $3 |\n\nThe area is $\\pi r^2$."
SHOWN = "Prices\nitem\nprice\ntea\n$3\nThe area is \\pi r^2."


@pytest.fixture
async def rich() -> AsyncIterator[TelegramPlatform]:
    async with TelegramPlatform(knows="blocks") as platform:
        yield platform
    assert [each for each in platform.violations if each != UNCHANGED] == []


def are_complete(telegram: TelegramPlatform, number: int) -> bool:
    shown = [message for message in own(telegram) if "tea" in message.text and Action.RETRY in message.actions]
    return len(shown) == number


def own(telegram: TelegramPlatform) -> list[Message]:
    return [message for message in telegram.messages.values() if message.is_the_bots]


def kinds(message: Message) -> list[str]:
    return [block["type"] for block in message.blocks or ()]


async def test_tables_formulas_and_headings_are_blocks(rich: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add(TABLE)
    async with running(rich, harness):
        await rich.say("how much?")
        await done(rich, SHOWN)
        (message,) = own(rich)
        assert kinds(message) == ["heading", "table", "paragraph"]
        assert message.actions == {Action.RETRY}


async def test_a_text_that_entities_show_whole_stays_one(rich: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add("**so** it is:\n\n```py\nx = 1\n```\n\n- a\n- b")
    async with running(rich, harness):
        await rich.say("how?")
        await done(rich, "so it is:\n\nx = 1\n\na\nb")
        assert [message.blocks for message in own(rich)] == [None]


async def test_a_long_answer_is_one_message(rich: TelegramPlatform, harness: Harness) -> None:
    answer = "\n\n".join(f"第 {number} 段，一些文字。" for number in range(400))
    assert LIMIT < len(answer) < RICH_LIMIT
    harness.engine.add(answer)
    async with running(rich, harness):
        await rich.say("tell me all")
        await done(rich, answer.replace("\n\n", "\n"))


@pytest.mark.parametrize("knows", ["text", "markdown"])
async def test_an_older_server_gets_entities(harness: Harness, knows: str) -> None:
    harness.engine.add(TABLE, TABLE)
    with structlog.testing.capture_logs() as logs:
        async with TelegramPlatform(knows=knows) as telegram, running(telegram, harness):  # type: ignore[arg-type]
            for number in (1, 2):
                await telegram.say("how much?")
                await telegram.until(partial(are_complete, telegram, number))
            assert all(message.blocks is None for message in own(telegram))
            assert telegram.violations == []
            asked = [name for name, form in telegram.calls if "Rich" in name or "rich_message" in form]
            assert asked == ["sendRichMessage"] + ["editMessageText"] * (knows == "markdown")
    assert sum("knows no rich messages" in str(line["event"]) for line in logs) == 1


@pytest.mark.parametrize("status", [403, 502])
async def test_a_proxy_that_refuses_unknown_methods_costs_no_answer(harness: Harness, status: int) -> None:
    harness.engine.add(TABLE)

    async def guard(request: web.Request) -> web.Response | None:
        is_unknown = request.path.endswith("/sendRichMessage")
        return web.Response(status=status, text="<html>not allowed</html>") if is_unknown else None

    async with TelegramPlatform() as telegram:
        telegram.gate.guard = guard
        async with running(telegram, harness):
            await telegram.say("how much?")
            await telegram.until(partial(are_complete, telegram, 1))


async def test_refused_blocks_become_entities_and_refused_entities_plain_text(
    rich: TelegramPlatform, harness: Harness
) -> None:
    rich.refuses_blocks = True
    harness.engine.add(TABLE, TABLE)
    async with running(rich, harness):
        await rich.say("how much?")
        await rich.until(lambda: any("tea" in text for text in texts(rich)) and not rich_is_open(rich))
        assert "pre" in {entity.kind for message in own(rich) for entity in message.entities}
        rich.refuses_entities = True
        await rich.say("once more")
        await rich.until(lambda: texts(rich)[-1:] == [TABLE] and not rich_is_open(rich))


def rich_is_open(telegram: TelegramPlatform) -> bool:
    return any(Action.STOP in message.actions for message in own(telegram))


async def test_a_long_answer_whose_blocks_are_refused_is_split_for_entities(
    rich: TelegramPlatform, harness: Harness
) -> None:
    rich.refuses_blocks = True
    answer = "# All\n\n" + "\n\n".join(f"Paragraph {number} with some more words." for number in range(300))
    harness.engine.add([answer[:2000], answer[2000:]])
    async with running(rich, harness):
        await rich.say("tell me all")
        pieces = [chunk.text for chunk in split(answer, TelegramFormat())]
        await done(rich, *(TelegramFormat().render(piece).text for piece in pieces))


@pytest.mark.parametrize("kind", ["lost", "timeout"])
async def test_a_rich_answer_whose_response_was_lost_is_there_once(
    rich: TelegramPlatform, harness: Harness, kind: str
) -> None:
    harness.engine.add("ok", TABLE)
    once = {"sendRichMessage", "editMessageText"}

    def fail(number: int, name: str) -> Fault | None:
        if name in once:
            once.discard(name)
            return Fault(kind)  # type: ignore[arg-type]
        return None

    async with running(rich, harness):
        await rich.say("one")
        await done(rich, "ok")
        rich.script = fail
        await rich.say("two")
        await done(rich, "ok", SHOWN)


async def test_a_rich_message_that_a_killed_run_has_left_is_continued(tmp_path: Path) -> None:
    async with TelegramPlatform(knows="blocks") as telegram:
        async with make_harness(tmp_path) as before, running(telegram, before):
            before.engine.add([TABLE, asyncio.Event()])
            await telegram.say("how much?", direct=True)
            await telegram.until(lambda: any(message.blocks for message in own(telegram)))
        async with make_harness(tmp_path) as after, running(telegram, after):
            after.engine.add(TABLE)
            await done(telegram, SHOWN, channel="Mei")


@pytest.mark.parametrize("is_direct", [True, False])
async def test_a_rich_message_whose_send_was_lost_is_known_by_its_words(
    rich: TelegramPlatform, is_direct: bool
) -> None:
    async def rename(channel: ChannelKey, to: str) -> None:
        raise AssertionError("no chat has moved")

    known = FakeKnownMessages()
    rich.script = lambda number, name: Fault("lost") if number == 0 else None
    question = await rich.say("how much?", direct=is_direct)
    chat = rich.private("Mei") if is_direct else rich.group("general")
    known.channel = channel = ChannelKey("telegram", str(chat.id))
    async with await open_bot(rich.settings()) as bot:
        support = RichSupport(ManualClock(), is_known=True)
        messenger = TelegramMessenger(bot, rich.settings(), rename, known, rich=support)
        send = partial(messenger.send, channel, RichFormat().render(TABLE), reply_to=question, nonce="1")
        with pytest.raises(PlatformUnavailable):
            await send(controls=frozenset({Action.RETRY}))
        (left,) = own(rich)
        assert kinds(left) == ["heading", "table", "paragraph"]
        assert await send(controls=frozenset({Action.RETRY})) == str(left.id)
    assert len(own(rich)) == 1
    assert left.actions == {Action.RETRY}


@asynccontextmanager
async def sending(rich: TelegramPlatform, support: RichSupport) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Yield a call that sends a table in a private chat, in the format of the moment."""

    async def rename(channel: ChannelKey, to: str) -> None:
        raise AssertionError("no chat has moved")

    channel = ChannelKey("telegram", str(rich.private("Mei").id))
    async with await open_bot(rich.settings()) as bot:
        messenger = TelegramMessenger(bot, rich.settings(), rename, FakeKnownMessages(), rich=support)

        async def send() -> str:
            text = messenger.format.render(TABLE)
            return await messenger.send(channel, text, reply_to=None, controls=frozenset(), nonce="1")

        yield send


refusals = pytest.mark.parametrize(
    "refusal",
    [Refused(404, "Not Found"), Refused(400, "Bad Request: rich message must be non-empty")],
    ids=["a proxy's 404", "an empty message"],
)


@refusals
async def test_one_refusal_turns_rich_messages_off_for_an_hour_at_most(
    rich: TelegramPlatform, refusal: Refused
) -> None:
    clock = ManualClock()
    async with sending(rich, RichSupport(clock, is_known=True)) as send:
        rich.broken["sendRichMessage"] = refusal
        with pytest.raises(MarkupRefused):
            await send()
        del rich.broken["sendRichMessage"]
        await send()
        clock.jump(3601)
        await send()
    assert [message.blocks is not None for message in own(rich)] == [False, True]


@refusals
async def test_a_server_that_has_taken_rich_messages_is_sent_further_ones(
    rich: TelegramPlatform, refusal: Refused
) -> None:
    async with sending(rich, RichSupport(ManualClock(), is_known=True)) as send:
        await send()
        rich.broken["sendRichMessage"] = refusal
        with pytest.raises(MarkupRefused):
            await send()
        del rich.broken["sendRichMessage"]
        await send()
    assert all(message.blocks for message in own(rich))


async def test_a_server_that_seemed_old_at_the_login_is_asked_again(rich: TelegramPlatform) -> None:
    clock = ManualClock()
    async with sending(rich, RichSupport(clock, is_known=False)) as send:
        await send()
        clock.jump(3601)
        await send()
    assert [message.blocks is not None for message in own(rich)] == [False, True]


async def test_a_refusal_of_guests_blocks_counts_too(harness: Harness) -> None:
    harness.engine.add(TABLE, TABLE)
    async with TelegramPlatform(knows="markdown") as telegram, running(telegram, harness):
        for number in (1, 2):
            telegram.guest("how much?")
            await telegram.until(
                lambda number=number: sum("tea" in text for text in texts(telegram, "elsewhere")) == number  # type: ignore[misc]
            )
        assert sum("rich_message" in form for _, form in telegram.calls) == 1


def test_blocks_are_accepted_and_hold_the_whole_text() -> None:
    chance = random.Random(5)
    for text in [*hostile_texts(40, 3), TABLE]:
        format = RichFormat()
        chunks = split(text[: chance.randrange(1, len(text) + 1)], format)
        assert join(chunks) == text[: len(join(chunks))]
        for chunk in chunks:
            rendered = format.render(chunk.text)
            blocks = rich_message_of(rendered)
            if blocks is None:
                assert utf16_units(rendered.text) <= LIMIT
            elif rendered.text.strip():
                assert refused_message(json.loads(json.dumps(blocks.facts))) is None
                assert plain_text(list(blocks.blocks)) == rendered.text


async def test_a_rich_message_can_be_replied_to_and_forwarded(rich: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add(TABLE, "ok", "ok")
    async with running(rich, harness):
        await rich.say("how much?")
        await done(rich, SHOWN)
        answer = own(rich)[0]
        await rich.say("in pounds?", author="Ben", mention=False, reply_to=str(answer.id))
        await done(rich, SHOWN, "ok")
        origin, content = {"type": "user", "sender_user": {"id": 1}}, {"blocks": answer.blocks}
        await rich.say("", direct=True, forward_origin=origin, rich_message=content)
        await done(rich, "ok", channel="Mei")
    assert SHOWN in harness.engine.requests[-1].messages[-1].content


def test_tables_formulas_and_code_of_generated_answers_are_shown_as_such() -> None:
    assert [(seed, fault) for seed in range(150) for fault in faults(seed)] == []
