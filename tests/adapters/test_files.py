"""Attached files: fetched from the platform, read, answered about, deleted."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bot.chat.reading.fault import Unreadable
from bot.domain import Attachment, ChannelKey, Exchange, FileFault, Finished, FinishReason, Kind
from bot.errors import PlatformUnavailable, RateLimited
from tests.harness.discord_harness import run_discord_bot
from tests.harness.fakes import JumpingClock
from tests.harness.harness import Harness, make_harness
from tests.harness.messages import NOON, a_message
from tests.harness.platform import TIMEOUT
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import TelegramPlatform
from tests.harness.slack_harness import running as running_slack
from tests.harness.telegram_harness import running as running_telegram
from tests.reading import makers

# Says a message, in a direct chat unless told otherwise, with a file as name, bytes and type.
Say = Callable[..., Awaitable[object]]
Chat = tuple[Any, Harness, Say]


@pytest.fixture(params=["discord", "telegram", "slack"])
async def chat(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Chat]:
    """A platform's server, the chat behind its adapter, and a way to say something."""
    match request.param:
        case "discord":
            async with DiscordPlatform() as discord, run_discord_bot(discord, tmp_path) as bot:

                async def say(text: str, *file: Any, direct: bool = True, **facts: Any) -> object:
                    attachments = [discord.file(*file)] if file else []
                    return await discord.say(text, direct=direct, attachments=attachments, **facts)

                yield discord, bot.harness, say
        case "telegram":
            async with TelegramPlatform() as telegram, make_harness(tmp_path) as harness:

                async def say_there(text: str, *file: Any, direct: bool = True, **facts: Any) -> object:
                    attached = telegram.file(*file) if file else None
                    return await telegram.say(text, direct=direct, attached=attached, **facts)

                async with running_telegram(telegram, harness):
                    yield telegram, harness, say_there
        case _:
            async with SlackServer() as slack, make_harness(tmp_path) as harness:

                async def post(text: str, *file: Any, direct: bool = True, **facts: Any) -> object:
                    return await slack.say(text, direct=direct, files=[slack.file(*file)] if file else [], **facts)

                async with running_slack(harness, slack):
                    yield slack, harness, post


async def answer(chat: Chat, text: str) -> str:
    """Wait until the bot's message begins with this text and is complete; return it without spaces."""
    server = chat[0]

    def shown() -> list[str]:
        seen = [each for each in server.seen("Mei") if each.author == "bot"]
        return [each.visible for each in seen if each.visible.startswith(text) and len(each.actions) == 1]

    await server.until(shown)
    return "".join(shown()[-1].split())


def asked(chat: Chat) -> str:
    return str(chat[1].engine.requests[-1].messages[-1].content)


@pytest.mark.parametrize(
    ("name", "data", "contents"),
    [
        ("notes.txt", "第一行\nsecond".encode(), "第一行\nsecond"),
        ("table.csv", b"a,b\n1,2", "a,b\n1,2"),
        ("report.docx", makers.document("quarterly figures"), "quarterly figures"),
    ],
)
async def test_a_file_is_read(chat: Chat, name: str, data: bytes, contents: str) -> None:
    chat[1].engine.add("four")
    await chat[2]("what does it say?", name, data)
    assert await answer(chat, "four") == "four"
    assert asked(chat) == f"{name}:\n{contents}\n\nwhat does it say?"


async def test_a_file_has_the_id_of_its_platform(chat: Chat) -> None:
    chat[1].engine.add("four")
    await chat[2]("what does it say?", "a.txt", b"words")
    await answer(chat, "four")
    (asked_about,) = await chat[1].intake.said_since(chat[0].name, NOON - timedelta(days=9999))
    (file,) = asked_about.message.files
    assert file.id
    assert file.text == "words"


async def test_a_pdf_is_read(chat: Chat) -> None:
    pytest.importorskip("pypdf")
    chat[1].engine.add("four")
    await chat[2]("what does it say?", "report.pdf", makers.pdf("page one"), "application/pdf")
    await answer(chat, "four")
    assert asked(chat) == "report.pdf:\npage one\n\nwhat does it say?"


async def test_a_file_without_words_is_the_question(chat: Chat) -> None:
    chat[1].engine.add("four")
    await chat[2]("", "message.txt", b"a long paste", "text/plain")
    await answer(chat, "four")
    assert asked(chat) == "message.txt:\na long paste"


@pytest.mark.parametrize(
    ("file", "notice"),
    [
        (("cat.png", b"\x89PNG", "image/png"), "I cannot see pictures, so I skipped cat.png."),
        (("voice.ogg", b"OggS", "audio/ogg"), "I cannot play audio or video, so I skipped voice.ogg."),
        (("a.bin", b"\0\1\2", "application/octet-stream"), "I cannot read files of this kind: a.bin."),
        (("a.docx", b"PK\3\4", ""), "I could not read a.docx: the file is damaged."),
    ],
)
async def test_an_unread_file_is_told_in_one_line(chat: Chat, file: tuple[str, bytes, str], notice: str) -> None:
    chat[1].engine.add("four")
    await chat[2]("what is it?", *file)
    assert await answer(chat, "four") == f"four{notice}".replace(" ", "")
    assert asked(chat) == "what is it?"


async def test_a_redirect_elsewhere_is_not_followed(chat: Chat) -> None:
    chat[0].shelf.elsewhere = "http://127.0.0.1:9/stolen"
    chat[1].engine.add("four")
    await chat[2]("what is it?", "a.txt", b"words")
    assert "thefilecouldnotbefetched" in await answer(chat, "four")
    assert len(chat[0].shelf.asked) == 1


async def test_a_failing_server_is_asked_again(chat: Chat) -> None:
    chat[0].shelf.failures = 1
    chat[1].engine.add("four")
    await chat[2]("what is it?", "a.txt", b"words")
    assert await answer(chat, "four") == "four"
    assert asked(chat) == "a.txt:\nwords\n\nwhat is it?"


@pytest.mark.parametrize("source", ["http://169.254.169.254/latest", "https://cdn.discordapp.com.evil.example/a", ""])
async def test_a_foreign_host_is_not_asked(chat: Chat, source: str) -> None:
    platform = chat[0].name
    file = Attachment("a.txt", source=source)
    message = a_message(channel=replace(a_message().channel, platform=platform))
    read = await chat[1].intake.files.read(replace(message, files=(file,)))
    assert [each.fault for each in read] == [FileFault.MISSING]
    assert chat[0].shelf.asked == []


# Without a platform


async def stored_question(harness: Harness, *files: Attachment, **facts: Any) -> Exchange:
    exchange = await harness.store.enqueue(replace(a_message("why?", **facts), files=files), Kind.CHAT)
    assert exchange is not None
    return exchange


async def test_a_file_interrupted_by_a_kill_is_read_after_the_restart(tmp_path: Path) -> None:
    async with make_harness(tmp_path) as before:
        await stored_question(before, Attachment("a.txt", source="7"))
    async with make_harness(tmp_path) as harness:

        async def fetch(file: Attachment) -> AsyncIterator[bytes]:
            assert file.source == "7"
            yield b"words"

        harness.intake.files.sources["discord"] = fetch
        harness.engine.add("four")
        (owed,) = await harness.intake.recover("discord")
        await harness.replied(owed)
        assert harness.engine.requests[-1].messages[-1].content == "a.txt:\nwords\n\nwhy?"
        assert (await harness.stored(owed)).message.files == (Attachment("a.txt", text="words"),)


async def test_text_of_a_quoted_file_goes_with_the_quoted_message(harness: Harness) -> None:
    exchange = await stored_question(harness, Attachment("a.txt", is_quoted=True), quoted_id="77")
    file = Attachment("a.txt", text="words of Ben", is_quoted=True)
    assert await harness.store.record_files(exchange, [file])
    assert (await harness.stored(exchange)).message.quoted == "a.txt:\nwords of Ben"
    await harness.store.delete_messages(exchange.message.channel, ["77"])
    assert "words of Ben" not in str(await harness.stored(exchange))
    # A process that still reads it may not bring it back.
    assert await harness.store.record_files(exchange, [file])
    assert "words of Ben" not in str(await harness.stored(exchange))


async def test_an_edit_that_removes_a_file_removes_its_text(harness: Harness) -> None:
    exchange = await stored_question(harness, Attachment("a.txt", size=5, source="7"))
    await harness.store.record_files(exchange, [Attachment("a.txt", size=5, text="words")])
    kept = replace(exchange.message, text="why not?", files=(Attachment("a.txt", size=5, source="8"),))
    await harness.intake.edit(kept)
    assert [file.text for file in (await harness.stored(exchange)).message.files] == ["words"]
    await harness.intake.edit(replace(kept, files=()))
    assert (await harness.stored(exchange)).message.files == ()


def read_file(id: str, text: str) -> Attachment:
    return Attachment("a.csv", size=5, text=text, id=id)


def sent_file(id: str) -> Attachment:
    return Attachment("a.csv", size=5, source="7", id=id)


@pytest.mark.parametrize("is_missed", [False, True], ids=["while connected", "while disconnected"])
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("F2",), [""]),  # another one of the same name and size
        (("F1", "F2"), ["1,2,3", ""]),
        (("",), ["1,2,3"]),  # an older version stored no ids
    ],
)
async def test_a_file_is_known_by_its_id(
    harness: Harness, files: tuple[str, ...], expected: list[str], is_missed: bool
) -> None:
    exchange = await stored_question(harness, sent_file("F1"))
    await harness.store.record_files(exchange, [read_file("F1", "1,2,3")])
    edited = replace(exchange.message, files=tuple(map(sent_file, files)))
    if is_missed:
        await harness.intake.store_change(await harness.stored(exchange), edited, None)
    else:
        await harness.intake.edit(edited)
    assert [file.text for file in (await harness.stored(exchange)).message.files] == expected


@pytest.mark.parametrize("ids", [("F1", "F2"), ("", "")])
async def test_two_files_of_one_name_and_size_stay_two(harness: Harness, ids: tuple[str, str]) -> None:
    exchange = await stored_question(harness, *map(sent_file, ids))
    await harness.store.record_files(
        exchange, [read_file(id, text) for id, text in zip(ids, ("one", "two"), strict=True)]
    )
    await harness.intake.edit(replace(exchange.message, text="why not?", files=tuple(map(sent_file, ids))))
    assert [file.text for file in (await harness.stored(exchange)).message.files] == ["one", "two"]


@pytest.mark.parametrize("text", ["", "why?"])
@pytest.mark.parametrize(
    ("error", "asked_again"),
    [
        (PlatformUnavailable("502"), True),
        (RateLimited(2.0), True),
        (Unreadable("slow"), True),
        (Unreadable("missing"), False),
    ],
)
async def test_another_answer_fetches_a_file_again_that_could_not_be_had_for_a_moment(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str, asked_again: bool
) -> None:
    monkeypatch.setattr(harness.intake.files, "_clock", JumpingClock())
    failures: list[Exception] = [error] * 3

    async def fetch(file: Attachment) -> AsyncIterator[bytes]:
        if failures:
            raise failures.pop()
        yield b"words"

    harness.intake.files.sources["discord"] = fetch
    exchange = await harness.accept(replace(a_message(text), files=(Attachment("a.txt", source="7"),)))
    assert "I could not read a.txt" in str(await harness.replied(exchange))
    failures.clear()
    again = await harness.exchanges.requeue(await harness.stored(exchange))
    assert again is not None
    await harness.replied(again)
    assert ("words" in str(harness.engine.requests[-1:])) is asked_again


async def test_a_long_file_is_cut_to_the_context(harness: Harness) -> None:
    harness.settings.files = harness.settings.files.model_copy(update={"max_chars": 100})

    async def fetch(file: Attachment) -> AsyncIterator[bytes]:
        yield b"word " * 100

    harness.intake.files.sources["discord"] = fetch
    harness.engine.add("four")
    events = await harness.ask(replace(a_message("why?"), files=(Attachment("a.txt", source="7"),)))
    assert "characters of a.txt were read." in str(events)


@pytest.mark.parametrize("text", ["", "why?"])
async def test_a_question_that_is_stopped_while_its_file_is_read_says_nothing(harness: Harness, text: str) -> None:
    begun = asyncio.Event()

    async def fetch(file: Attachment) -> AsyncIterator[bytes]:
        if not begun.is_set():
            begun.set()
            await asyncio.Event().wait()
        yield b"words"

    harness.intake.files.sources["discord"] = fetch
    question = replace(a_message(text), files=(Attachment("a.txt", source="7"),))
    asking = asyncio.create_task(harness.ask(question))
    await begun.wait()
    exchange = await harness.store.find(question.channel, question.id)
    assert exchange is not None
    harness.exchanges.stop(exchange)
    assert await asking == [Finished(FinishReason.CANCELLED)]
    again = await harness.exchanges.requeue(exchange)
    assert again is not None
    await harness.replied(again)
    assert "words" in harness.engine.requests[-1].messages[-1].content


@pytest.mark.parametrize("trouble", ["hangs", "asks to wait"])
async def test_a_platform_whose_files_do_not_come_holds_up_no_file_of_another(harness: Harness, trouble: str) -> None:
    begun = asyncio.Semaphore(0)

    async def ill(_: Attachment) -> AsyncIterator[bytes]:
        begun.release()
        if trouble == "asks to wait":
            raise RateLimited(3600.0)
        await asyncio.Event().wait()
        yield b""

    async def well(_: Attachment) -> AsyncIterator[bytes]:
        yield b"words"

    files = harness.intake.files
    files.sources |= {"discord": ill, "slack": well}
    many = tuple(Attachment(f"{number}.txt", source="there") for number in range(4))
    waiting = asyncio.create_task(files.read(replace(a_message(), files=many)))
    await begun.acquire()
    await begun.acquire()
    elsewhere = replace(a_message(), channel=ChannelKey("slack", "C1"), files=(Attachment("a.txt", source="there"),))
    async with asyncio.timeout(TIMEOUT):
        assert [file.text for file in await files.read(elsewhere)] == ["words"]
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
