"""What others said before a question, and linked messages: read where it is on, kept and deleted like the question."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bot.config.schema import ConversationSection
from bot.domain import FurtherKind
from tests.adapters.test_files import Chat, asked
from tests.adapters.test_sent_as_one import answers, chat
from tests.harness.discord_harness import run_discord_bot
from tests.harness.harness import make_harness
from tests.harness.platform import TIMEOUT
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_world import GUILD
from tests.harness.servers.slack import SlackServer
from tests.harness.slack_harness import running as running_slack

__all__ = ["chat"]

TOLD = (
    "Before a question in this channel I read up to 5 messages that were written before it. "
    "They are kept with the question, and deleted with it."
)
BEFORE = "> Ben: tea at five?\n> Ann: yes, bring cake"


def turn_on(chat: Chat) -> None:
    chat[1].settings.conversation = ConversationSection(context_messages=5)


async def talk(chat: Chat) -> list[Any]:
    return [
        await chat[2]("tea at five?", mention=False, author="Ben"),
        await chat[2]("yes, bring cake", mention=False, author="Ann"),
    ]


async def ends(chat: Chat, first: object, text: str) -> str:
    """Wait until the bot's newest message begins with this text and is complete; return it."""
    server, thread = chat[0], str(first) if chat[0].name == "slack" else None

    def replies() -> list[Any]:
        return [each for each in server.seen("general", thread) if each.author == "bot"]

    await server.until(
        lambda: bool(replies()) and replies()[-1].visible.startswith(text) and bool(replies()[-1].actions)
    )
    await server.until(lambda: len(replies()[-1].actions) == 1)
    return str(replies()[-1].visible)


async def test_earlier_messages_are_read_and_announced_once(chat: Chat) -> None:
    turn_on(chat)
    await talk(chat)
    chat[1].engine.add("four", "five")
    first = await chat[2]("what are they talking about?")
    told = await ends(chat, first, "four")
    assert "".join(TOLD.split()) in "".join(told.split())
    assert asked(chat) == f"{BEFORE}\n\nMei: what are they talking about?"
    second = await chat[2]("and when?")
    assert await ends(chat, second, "five") == "five"


@pytest.mark.parametrize("in_thread", [False, True])
async def test_on_slack_the_last_messages_are_read_however_it_pages_them(tmp_path: Path, in_thread: bool) -> None:
    async with SlackServer() as slack, make_harness(tmp_path) as harness, running_slack(harness, slack):
        chat: Chat = slack, harness, slack.say
        turn_on(chat)
        first = await slack.say("number 0", mention=False, author="Ben")
        for number in range(1, 12):
            await slack.say(f"number {number}", mention=False, author="Ben", thread=first if in_thread else None)
        question = await slack.say("what was said?", thread=first if in_thread else None)
        await ends(chat, first if in_thread else question, "ok")
    said = "\n".join(f"> Ben: number {number}" for number in range(7, 12))
    assert said in asked(chat)
    assert "number 6" not in asked(chat)


async def test_nothing_is_read_where_it_is_off(chat: Chat) -> None:
    await talk(chat)
    chat[1].engine.add("four")
    first = await chat[2]("what are they talking about?")
    assert await answers(chat, first, "four") == ["four"]
    assert asked(chat) == "Mei: what are they talking about?"
    assert await stored(chat, first) == ()


async def stored(chat: Chat, first: object) -> tuple[str, ...]:
    rows = await chat[1].store.said_since(chat[0].name, chat[1].intake.today().replace(year=2000))
    [row] = [each for each in rows if each.message.id == str(first)]
    return tuple(each.text for each in row.message.further if each.kind is FurtherKind.BEFORE)


async def test_a_message_that_is_edited_or_deleted_leaves_the_context(chat: Chat) -> None:
    turn_on(chat)
    tea, cake = await talk(chat)
    chat[1].engine.add("four")
    first = await chat[2]("what are they talking about?")
    await ends(chat, first, "four")
    assert await stored(chat, first) == ("tea at five?", "yes, bring cake")
    await chat[0].edit(str(tea), "tea at six?")
    if chat[0].name != "telegram":  # which tells no bot of a deletion
        await chat[0].delete(str(cake))
        await settled(chat, first, ("tea at six?",))
    else:
        await settled(chat, first, ("tea at six?", "yes, bring cake"))


async def settled(chat: Chat, first: object, expected: tuple[str, ...]) -> None:
    """Wait until this is what is stored as said before the question."""
    async with asyncio.timeout(TIMEOUT):
        while await stored(chat, first) != expected:
            pass


async def test_forget_me_removes_a_person_from_the_context(chat: Chat) -> None:
    turn_on(chat)
    await talk(chat)
    chat[1].engine.add("four", "five")
    first = await chat[2]("what are they talking about?")
    await ends(chat, first, "four")
    await chat[0].command("forget me", author="Ben")
    await settled(chat, first, ("yes, bring cake",))
    second = await chat[2]("and when?")
    await ends(chat, second, "five")
    assert "tea at five" not in asked(chat)


async def test_messages_from_before_a_clear_stay_unread(chat: Chat) -> None:
    turn_on(chat)
    await talk(chat)
    chat[1].engine.add("four")
    chat[1].access.reconfigure(
        chat[1].access._access.model_copy(update={"clear_by": "everyone"}), chat[1].access.limits
    )
    await chat[0].command("clear")
    first = await chat[2]("what are they talking about?")
    await ends(chat, first, "four")
    assert asked(chat) == "Mei: what are they talking about?"


async def test_a_linked_message_of_a_server_is_read(tmp_path: Path) -> None:
    async with DiscordPlatform() as discord, run_discord_bot(discord, tmp_path) as bot:
        said = await discord.say("the plan is ready", author="Ben", channel="plans", mention=False)
        link = f"https://discord.com/channels/{GUILD}/{discord.channel('plans')}/{said}"
        chat: Chat = discord, bot.harness, discord.say
        bot.harness.engine.add("four", "five")
        assert await answers(chat, await discord.say(f"is {link} true?"), "four") == ["four"]
        assert asked(chat) == f"> Ben: the plan is ready\n\nMei: is {link} true?"
        elsewhere = link.replace(str(GUILD), "99")
        await answers(chat, await discord.say(f"is {elsewhere} true?"), "five")
        assert asked(chat) == f"Mei: is {elsewhere} true?"


@pytest.mark.parametrize(("members", "is_read"), [(None, True), ({"Ben"}, False), ({"Ben", "Mei"}, True)])
async def test_a_linked_message_is_read_if_its_asker_may(
    tmp_path: Path, members: set[str] | None, is_read: bool
) -> None:
    async with SlackServer() as slack, make_harness(tmp_path) as harness, running_slack(harness, slack):
        said = await slack.say("the plan is ready", author="Ben", channel="plans", mention=False)
        if members is not None:
            slack.workspace.private["plans"] = members
        place, ts = slack.workspace.channel("plans"), said.replace(".", "")
        link = f"https://example.slack.com/archives/{place}/p{ts}"
        chat: Chat = slack, harness, slack.say
        harness.engine.add("four")
        await answers(chat, await slack.say(f"is {link} true?"), "four")
        quoted = "> Ben: the plan is ready\n\n" if is_read else ""
        assert asked(chat) == f"{quoted}Mei: is {link} true?"
