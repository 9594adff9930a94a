"""Messages that a send has left on Telegram whose id the bot never learned: they are continued, not sent again."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bot.adapters.telegram.client import open_bot
from bot.adapters.telegram.messenger import TelegramMessenger
from bot.delivery.markdown.format import Rendered
from bot.domain import Action, ChannelKey, Controls
from bot.errors import PlatformUnavailable
from tests.harness.fakes import FakeKnownMessages
from tests.harness.platform import Fault
from tests.harness.servers.telegram import BOT, Message, TelegramPlatform

STOP: Controls = frozenset({Action.STOP})
RETRY: Controls = frozenset({Action.RETRY})
NONE: Controls = frozenset()


class Run:
    """A run of the bot: its messenger, and the replies that the database knows."""

    def __init__(self, telegram: TelegramPlatform, messenger: TelegramMessenger, known: FakeKnownMessages) -> None:
        self.telegram = telegram
        self.messenger = messenger
        self.known = known

    def channel(self, *, direct: bool = False) -> ChannelKey:
        chat = self.telegram.private("Mei") if direct else self.telegram.group("general")
        return ChannelKey("telegram", str(chat.id))

    async def send(
        self, question: str, text: str = "…", controls: Controls = STOP, *, direct: bool = False, is_again: bool = True
    ) -> str:
        rendered, channel = Rendered(text), self.channel(direct=direct)
        self.known.channel = channel
        return await self.messenger.send(
            channel, rendered, reply_to=question, controls=controls, nonce=question, may_exist=is_again
        )

    def left(self, text: str, controls: Controls, *, reply_to: str | None = None, direct: bool = False) -> Message:
        """Leave a message of the bot that it does not know of."""
        telegram = self.telegram
        chat = telegram.private("Mei") if direct else telegram.group("general")
        number = None if reply_to is None else int(reply_to)
        message = Message(telegram.number_in(chat), chat, BOT, text, actions=controls, reply_to=number)
        telegram.messages[chat.id, message.id] = message
        return message

    def probes(self) -> list[int]:
        return [form["message_id"] for method, form in self.telegram.calls if method == "editMessageReplyMarkup"]


@asynccontextmanager
async def a_run() -> AsyncIterator[Run]:
    known = FakeKnownMessages()

    async def rename(channel: ChannelKey, to: str) -> None:
        raise AssertionError("no chat has moved")

    async with TelegramPlatform() as telegram, await open_bot(telegram.settings()) as bot:
        yield Run(telegram, TelegramMessenger(bot, telegram.settings(), rename, known), known)


@pytest.mark.parametrize(
    ("text", "controls"), [("…", STOP), ("…", NONE), ("Waiting: number 2 in the queue.", STOP), ("All of it.", RETRY)]
)
async def test_a_message_under_the_question_is_continued_in_a_group(text: str, controls: Controls) -> None:
    async with a_run() as run:
        question = await run.telegram.say("how are you?")
        left = run.left(text, controls, reply_to=question)
        await run.telegram.say("nobody asked", author="Ben")

        assert await run.send(question) == str(left.id)
        assert (left.text, left.actions) == ("…", STOP)
        assert [seen.author for seen in run.telegram.seen()] == ["Mei", "bot", "Ben"]


@pytest.mark.parametrize("text", ["…", "All of it."])
async def test_a_message_with_the_same_words_is_continued_in_a_private_chat(text: str) -> None:
    async with a_run() as run:
        question = await run.telegram.say("how are you?", direct=True)
        await run.telegram.say("a message of another chat", author="Ben", direct=True)
        left = run.left(text, RETRY, direct=True)
        assert await run.send(question, "All of it.", RETRY, direct=True) == str(left.id)
        assert (left.text, left.actions) == ("All of it.", RETRY)


async def test_messages_that_are_not_the_reply_stay_as_they_are() -> None:
    async with a_run() as run:
        first = await run.telegram.say("and you?")
        question = await run.telegram.say("how are you?", author="Ben")
        known, notice = (
            run.left("Known.", RETRY, reply_to=question),
            run.left("Yours is queued.", NONE, reply_to=question),
        )
        command = run.left("Forgotten.", NONE, reply_to=first)
        run.known.replies.add(str(known.id))

        sent = await run.send(question)
        assert sent not in {str(known.id), str(notice.id), str(command.id)}
        shown = [(each.text, each.actions) for each in (known, notice, command)]
        assert shown == [("Known.", RETRY), ("Yours is queued.", NONE), ("Forgotten.", NONE)]
        assert [seen.author for seen in run.telegram.seen()] == ["Mei", "Ben", *["bot"] * 4]


async def test_a_message_that_was_sent_in_this_run_is_no_other_questions() -> None:
    async with a_run() as run:
        question = await run.telegram.say("how are you?", direct=True)
        other = await run.telegram.say("and she?", direct=True)
        sent = await run.send(other, direct=True, is_again=False)
        assert await run.send(question, direct=True) != sent
        assert int(sent) not in run.probes()


async def test_a_send_whose_answer_was_lost_is_found_by_the_next_attempt() -> None:
    async with a_run() as run:
        question = await run.telegram.say("how are you?")
        run.telegram.script = lambda number, name: Fault("lost") if number == 0 else None
        with pytest.raises(PlatformUnavailable):
            await run.send(question, is_again=False)
        await run.send(question, is_again=False)
        assert [seen.author for seen in run.telegram.seen()] == ["Mei", "bot"]


async def test_the_search_ends_soon_where_nothing_was_sent() -> None:
    async with a_run() as run:
        question = await run.telegram.say("how are you?")
        await run.send(question)
        assert [number - int(question) for number in run.probes()] == [1, 2, 3]
    async with a_run() as run:
        question, *_, newest = [await run.telegram.say("and on we talk") for _ in range(40)]
        run.known.questions += [question, newest]
        await run.send(question)
        assert [number - int(question) for number in run.probes()] == [*range(1, 9), 40, 41, 42, *range(38, 30, -1)]


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize(("before", "after"), [(30, 0), (30, 6), (0, 30), (2, 3)])
async def test_a_message_of_a_run_after_a_restart_is_found_far_from_its_question(
    direct: bool, before: int, after: int
) -> None:
    """`before` and `after` are the numbers of questions around it."""
    async with a_run() as run:
        question = await run.telegram.say("how are you?", direct=direct)
        for _ in range(30):
            await run.telegram.say("and on we talk", direct=direct)
        backlog = [await run.telegram.say("another question", direct=direct) for _ in range(before)]
        left = run.left("…", STOP, reply_to=None if direct else question, direct=direct)
        backlog += [await run.telegram.say("another question", direct=direct) for _ in range(after)]
        run.known.questions += [question, *backlog]

        assert await run.send(question, direct=direct) == str(left.id)
        assert len(run.probes()) <= 24
        assert left.actions == STOP


async def test_a_search_that_was_cut_off_goes_on_without_asking_twice() -> None:
    async with a_run() as run:
        question = await run.telegram.say("how are you?")
        for _ in range(5):
            await run.telegram.say("and on we talk", author="Ben")
        left = run.left("…", STOP, reply_to=question)
        run.telegram.script = lambda number, name: Fault("500") if number == 4 else None
        with pytest.raises(PlatformUnavailable):
            await run.send(question)
        assert await run.send(question) == str(left.id)
        assert [number - int(question) for number in run.probes()] == [1, 2, 3, 4, 5, 5, 6]


@pytest.mark.parametrize("direct", [False, True])
async def test_what_a_search_finds_of_another_question_is_its_reply(direct: bool) -> None:
    """A live reply that waits to be sent whole is overtaken: the lost message may be a later question's."""
    async with a_run() as run:
        first = await run.telegram.say("how are you?", direct=direct)
        second = await run.telegram.say("and she?", direct=direct)
        text = "All of it." if direct else "…"
        left = run.left(text, STOP, reply_to=None if direct else second, direct=direct)
        run.known.questions += [first, second]

        sent = await run.send(first, direct=direct, text="Fine." if direct else "…")
        asked = len(run.probes())
        assert sent != str(left.id)
        assert await run.send(second, direct=direct, text=text) == str(left.id)
        assert left.actions == STOP
        assert len(run.probes()) == asked


async def test_one_search_is_enough_for_all_replies_of_a_chat() -> None:
    async with a_run() as run:
        questions = [await run.telegram.say("and you?") for _ in range(3)]
        run.known.questions += questions
        for question in questions:
            await run.send(question)
        assert [number - int(questions[-1]) for number in run.probes()] == [1, 2, 3]
