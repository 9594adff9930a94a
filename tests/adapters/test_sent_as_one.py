"""What was sent as one comes as several messages: a long paste, an album, a comment with a file or a forward."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bot.domain import Action
from tests.adapters.test_files import Chat, asked
from tests.harness.discord_harness import run_discord_bot
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import Harness, make_harness
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import TelegramPlatform
from tests.harness.slack_harness import running as running_slack
from tests.harness.telegram_harness import running as running_telegram
from tests.reading import makers
from tests.reading.hostile_pictures import drawn

LONGEST = {"discord": 2000, "telegram": 4096, "slack": 4000}
LINE = "0123456789 abcdefghi 天地玄黄宇宙洪荒 the quick brown fox jumps\n"


def patient(harness: Harness) -> Harness:
    """Let unfinished questions wait for more until the test moves the clock, however slow the machine is."""
    harness.intake.continuations._clock = harness.clock
    return harness


async def wait_is_over(telegram: TelegramPlatform, harness: Harness) -> None:
    """End the wait for more once everything that was said is stored."""
    await telegram.until(lambda: not telegram.pending)
    await harness.clock.advance(1.0)


@pytest.fixture(params=["discord", "telegram", "slack"])
async def chat(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Chat]:
    """A platform's server, the chat behind its adapter, and a way to say something in a channel."""
    engine = ScriptedEngine(context_length=32_000)
    match request.param:
        case "discord":
            async with DiscordPlatform() as discord, run_discord_bot(discord, tmp_path, engine=engine) as bot:

                async def say(text: str, *file: Any, **facts: Any) -> object:
                    attached: Any = {"attachments": [discord.file(*file)]} if file else {}
                    return await discord.say(text, **attached, **facts)

                yield discord, patient(bot.harness), say
        case "telegram":
            async with TelegramPlatform() as telegram, make_harness(tmp_path, engine) as harness:
                telegram.reads_all = True

                async def say_there(text: str, *file: Any, **facts: Any) -> object:
                    return await telegram.say(text, attached=telegram.file(*file) if file else None, **facts)

                async with running_telegram(telegram, harness):
                    yield telegram, patient(harness), say_there
        case _:
            async with SlackServer() as slack, make_harness(tmp_path, engine) as harness:

                async def post(text: str, *file: Any, **facts: Any) -> object:
                    attached: Any = {"files": [slack.file(*file)]} if file else {}
                    return await slack.say(text, **attached, **facts)

                async with running_slack(harness, slack):
                    yield slack, patient(harness), post


def pieces(name: str, length: int) -> list[str]:
    """Return a text in pieces as an app cuts it: at the end of a line, each as long as a message may be."""
    text, cut = (LINE * (length // len(LINE) + 1))[:length], []
    while text:
        end = len(text) if len(text) <= LONGEST[name] - 60 else text.rindex("\n", 0, LONGEST[name] - 60) + 1
        cut.append(text[:end].strip())
        text = text[end:]
    return cut


def place(chat: Chat, first: str) -> str | None:
    """Return the thread in which a question of the channel is answered."""
    return first if chat[0].name == "slack" else None


async def answers(chat: Chat, first: object, text: str) -> list[str]:
    """Wait until the bot's newest message has this text and is complete; return all that it says in the channel."""
    server, thread = chat[0], place(chat, str(first))

    def replies() -> list[Any]:
        return [each for each in server.seen("general", thread) if each.author == "bot"]

    def is_answered() -> bool:
        return bool(replies()) and replies()[-1].visible == text and Action.RETRY in replies()[-1].actions

    try:
        await server.until(is_answered)
    except TimeoutError:
        raise AssertionError(f"{replies()} instead of {text}") from None
    return [each.visible for each in replies()]


async def test_a_long_paste_is_one_question(chat: Chat) -> None:
    text = pieces(chat[0].name, 13_000)
    assert len(text) >= 4
    chat[1].engine.add("four")
    first = await chat[2](text[0])
    for piece in text[1:]:
        await chat[2](piece, mention=False)
    assert await answers(chat, first, "four") == ["four"]
    assert asked(chat) == "Mei: " + "\n".join(text)


async def test_a_file_after_a_mention_belongs_to_it(chat: Chat) -> None:
    chat[1].engine.add("four")
    first = await chat[2]("what does it say?:")
    await chat[2]("", "report.docx", makers.document("quarterly figures"), mention=False)
    assert await answers(chat, first, "four") == ["four"]
    assert asked(chat) == "report.docx:\nquarterly figures\n\nMei: what does it say?:"


async def test_a_bare_mention_takes_the_text_that_follows(chat: Chat) -> None:
    chat[1].engine.add("four")
    first = await chat[2]("")
    await chat[2]("why is the sky blue?", mention=False)
    assert await answers(chat, first, "four") == ["four"]
    assert asked(chat) == "Mei: why is the sky blue?"


async def test_chatter_after_a_question_is_left_alone(chat: Chat) -> None:
    chat[1].engine.add("four")
    first = await chat[2]("why is the sky blue?")
    await chat[2]("Ben, lunch?", mention=False)
    assert await answers(chat, first, "four") == ["four"]
    assert asked(chat) == "Mei: why is the sky blue?"


async def test_a_part_that_is_deleted_leaves_the_question(chat: Chat) -> None:
    text = pieces(chat[0].name, 9_000)
    chat[1].engine.add("four")
    chat[1].engine.add("five")
    first = await chat[2](text[0])
    ids = [await chat[2](piece, mention=False) for piece in text[1:]]
    await answers(chat, first, "four")
    if chat[0].name == "telegram":
        await chat[0].edit(str(ids[0]), "other words")  # no bot is told of a deletion
        expected = [text[0], "other words", *text[2:]]
    else:
        await chat[0].edit(str(ids[-1]), "other words")
        await answers(chat, first, "five")
        expected = [*text[:-1], "other words"]
    await answers(chat, first, "five")
    assert asked(chat) == "Mei: " + "\n".join(expected)


async def test_an_album_that_replies_to_a_person_is_one_question(tmp_path: Path) -> None:
    async with (
        TelegramPlatform() as telegram,
        make_harness(tmp_path) as harness,
        running_telegram(telegram, patient(harness)),
    ):
        harness.engine.add("four")
        said = await telegram.say("tea at five?", author="Ben", mention=False)
        for number, text in enumerate(["which of these?", ""]):
            file = telegram.file(f"{number}.txt", f"number {number}".encode())
            await telegram.say(text, mention=not number, reply_to=said, attached=file, media_group_id="7")
        await wait_is_over(telegram, harness)
        chat = telegram, harness, telegram.say
        assert await answers(chat, "", "four") == ["four"]
        assert asked(chat).count("tea at five?") == 1
        assert "number 1" in asked(chat)


async def test_an_album_is_one_question(tmp_path: Path) -> None:
    async with (
        TelegramPlatform() as telegram,
        make_harness(tmp_path) as harness,
        running_telegram(telegram, patient(harness)),
    ):
        harness.engine.add("four")
        for number, text in enumerate(["what are these?", "", ""]):
            file = telegram.file(f"{number}.txt", f"number {number}".encode())
            await telegram.say(text, mention=not number, attached=file, media_group_id="7")
        await wait_is_over(telegram, harness)
        chat = telegram, harness, telegram.say
        assert await answers(chat, "", "four") == ["four"]
        assert asked(chat) == "0.txt:\nnumber 0\n\n1.txt:\nnumber 1\n\n2.txt:\nnumber 2\n\nMei: what are these?"


async def test_a_model_that_sees_gets_all_pictures_of_an_album(tmp_path: Path) -> None:
    async with (
        TelegramPlatform() as telegram,
        make_harness(tmp_path) as harness,
        running_telegram(telegram, patient(harness)),
    ):
        harness.engine.most_pictures = 2
        harness.engine.add("four")
        for number, text in enumerate(["what are these?", "", ""]):
            photo = telegram.photo(drawn("JPEG", (100 + number, 50)))
            await telegram.say(text, mention=not number, attached=photo, media_group_id="7")
        await wait_is_over(telegram, harness)
        chat = telegram, harness, telegram.say
        await answers(chat, "", "four\n\nI did not look at photo.jpg: too many pictures at once.")
        pictures = harness.engine.requests[-1].messages[-1].pictures
        assert [each.width for each in pictures] == [100, 101]
