"""What Discord messages point at, and the notation in them."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web

from bot.domain import Action, ChannelKey, IncomingMessage
from tests.harness.discord_harness import DiscordBot, run_discord_bot
from tests.harness.harness import set_paused
from tests.harness.platform import TIMEOUT
from tests.harness.servers import discord_payloads as payloads
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_payloads import Json
from tests.harness.servers.discord_world import BOT, BOT_ROLE, GUILD

LONG_AGO = "2024-01-01T00:00:00+00:00"


async def stored(bot: DiscordBot, id: str, *, thread: str | None = None, channel: int | None = None) -> IncomingMessage:
    """Return a message as it is stored, waiting for it."""
    key = ChannelKey("discord", str(channel or bot.platform.channel("general")), thread)
    async with asyncio.timeout(TIMEOUT):
        while (exchange := await bot.harness.store.find(key, id)) is None:
            pass
    return exchange.message


def snapshot(content: str, **more: Any) -> Json:
    """A forwarded message."""
    message = {
        "type": 0,
        "content": content,
        "embeds": [],
        "attachments": [],
        "timestamp": LONG_AGO,
        "edited_timestamp": None,
        "flags": 0,
    }
    return {
        "message_reference": {"type": 1, "message_id": "177777777777777777", "channel_id": "177777777777777778"},
        "message_snapshots": [{"message": {**message, **more}}],
    }


def poll(question: str, *answers: str) -> Json:
    listed = [{"answer_id": number, "poll_media": {"text": text}} for number, text in enumerate(answers, 1)]
    return {
        "question": {"text": question},
        "answers": listed,
        "expiry": LONG_AGO,
        "allow_multiselect": False,
        "layout_type": 1,
    }


async def test_a_reply_with_only_a_mention_quotes_the_message(bot: DiscordBot) -> None:
    asked = await bot.platform.say("how far is the moon?", author="Ben", mention=False)
    question = await bot.platform.say("", reply_to=asked)
    message = await stored(bot, question)
    assert (message.text, message.quoted, message.quoted_id, message.quotes_bot) == (
        "",
        "how far is the moon?",
        asked,
        False,
    )


async def test_a_reply_to_an_answer_quotes_the_answer(bot: DiscordBot) -> None:
    bot.engine.add("Canberra")
    await bot.platform.say("capital of Australia?")
    await bot.shows("Canberra")
    answer = bot.platform.seen()[-1].id
    message = await stored(bot, await bot.platform.say("how old is it?", author="Jo", reply_to=answer, mention=False))
    assert (message.quoted, message.quoted_id, message.quotes_bot) == ("Canberra", answer, True)


@pytest.mark.parametrize("direct", [True, False])
async def test_a_forwarded_message_is_read(bot: DiscordBot, direct: bool) -> None:
    embed = {"type": "rich", "title": "Tides", "description": "High at six"}
    forward = snapshot("see <t:0:d> below", embeds=[embed])
    question = await bot.platform.say("", direct=direct, **forward)
    where = bot.platform.direct("Mei") if direct else bot.platform.channel("general")
    message = await stored(bot, question, channel=where)
    assert (message.text, message.quoted) == ("", "see 1970-01-01 below\nTides\nHigh at six")
    assert message.quoted_id == "177777777777777777"


async def test_a_forwarded_message_with_missing_fields_is_read(bot: DiscordBot) -> None:
    forward: Json = {
        "message_reference": {"type": 1, "channel_id": "177777777777777778"},
        "message_snapshots": [{"message": {"content": "the words"}}],
    }
    question = await bot.platform.say("", direct=True, **forward)
    assert (await stored(bot, question, channel=bot.platform.direct("Mei"))).quoted == "the words"


@pytest.mark.parametrize(
    ("more", "quoted"),
    [
        (
            {"embeds": [{"type": "rich", "title": "Alert", "fields": [{"name": "disk", "value": "full"}]}]},
            "Alert\ndisk: full",
        ),
        ({"embeds": [{"type": "rich", "description": "down", "footer": {"text": "db1, 09:30"}}]}, "down\ndb1, 09:30"),
        ({"poll": poll("Tea or coffee?", "tea", "coffee")}, "Tea or coffee?\n- tea\n- coffee"),
        ({"components": [{"type": 17, "components": [{"type": 10, "content": "# Menu"}]}]}, "# Menu"),
        ({"type": 6}, "Ben pinned a message to this channel."),
        (snapshot("passed on"), "passed on"),
    ],
    ids=["embed", "footer", "poll", "component", "system", "forward"],
)
async def test_a_quoted_message_without_text_is_read(bot: DiscordBot, more: Json, quoted: str) -> None:
    pointed = await bot.platform.say("", author="Ben", mention=False, **more)
    assert (await stored(bot, await bot.platform.say("explain", reply_to=pointed))).quoted == quoted


async def test_a_poll_in_a_direct_chat_is_read(bot: DiscordBot) -> None:
    question = await bot.platform.say("", direct=True, poll=poll("Which?", "one", "two"))
    message = await stored(bot, question, channel=bot.platform.direct("Mei"))
    assert message.quoted == "Which?\n- one\n- two"


async def test_a_reply_whose_message_is_not_in_the_event_is_fetched(bot: DiscordBot) -> None:
    pointed = await bot.platform.say("the sea is salty", author="Ben", mention=False)
    reference = {"type": 0, "message_id": pointed, "channel_id": str(bot.platform.channel("general"))}
    question = await bot.platform.say("why?", type=19, message_reference=reference)
    assert (await stored(bot, question)).quoted == "the sea is salty"


@pytest.mark.parametrize("status", [403, 404, 429, 500, 200])
async def test_a_quoted_message_that_cannot_be_fetched_is_left_out(bot: DiscordBot, status: int) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        if request.method != "GET" or not request.path.endswith("/177777777777777777"):
            return None
        return web.Response(status=status, body=b"{}", content_type="application/json")

    bot.platform.gate.guard = guard
    reference = {"type": 0, "message_id": "177777777777777777", "channel_id": str(bot.platform.channel("general"))}
    await bot.platform.say("why?", type=19, message_reference=reference)
    await bot.shows("ok")


async def test_a_quoted_message_that_never_arrives_does_not_hold_the_question(bot: DiscordBot) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        if request.method == "GET" and request.path.endswith("/177777777777777777"):
            await bot.platform.closing.wait()
        return None

    bot.platform.gate.guard = guard
    reference = {"type": 0, "message_id": "177777777777777777", "channel_id": str(bot.platform.channel("general"))}
    await bot.platform.say("why?", type=19, message_reference=reference)
    await bot.shows("ok")


async def test_a_deleted_message_is_not_quoted(bot: DiscordBot) -> None:
    reference = {"type": 0, "message_id": "177777777777777777", "channel_id": str(bot.platform.channel("general"))}
    question = await bot.platform.say("why?", type=19, message_reference=reference, referenced_message=None)
    assert (await stored(bot, question)).quoted is None


async def test_the_first_mention_in_a_thread_quotes_the_message_it_was_made_from(bot: DiscordBot) -> None:
    starter = await bot.platform.say("bread needs time", author="Ben", mention=False)
    bot.platform.make_thread("general", "bread", starter)
    first = await bot.platform.say("how much?", thread="bread")
    message = await stored(bot, first, thread=starter)
    assert (message.quoted, message.quoted_id, message.quotes_bot) == ("bread needs time", starter, False)
    await bot.shows("ok", thread="bread")
    second = await bot.platform.say("and yeast?", thread="bread")
    assert (await stored(bot, second, thread=starter)).quoted is None


async def test_after_a_refused_mention_the_next_one_quotes_the_start_of_the_thread(bot: DiscordBot) -> None:
    starter = await bot.platform.say("the library closes at six", author="Ben", mention=False)
    bot.platform.make_thread("general", "library", starter)
    set_paused(bot.harness.intake.access)
    await bot.platform.say("when exactly?", thread="library")
    await bot.platform.until(lambda: len(bot.shown(thread="library")) == 1)
    thread = ChannelKey("discord", str(bot.platform.channel("general")), starter)
    async with asyncio.timeout(TIMEOUT):
        while not await bot.harness.intake.quotes_root(thread):
            pass  # the refusal is shown before it is stored
    set_paused(bot.harness.intake.access, is_paused=False)
    second = await bot.platform.say("when exactly?", thread="library")
    assert (await stored(bot, second, thread=starter)).quoted == "the library closes at six"


async def test_a_thread_made_from_an_answer_quotes_it_as_the_bots(bot: DiscordBot) -> None:
    bot.engine.add("Rye.")
    await bot.platform.say("which flour?")
    await bot.platform.until(lambda: bot.platform.seen()[-1].actions == {Action.RETRY})
    answer = bot.platform.seen()[-1].id
    bot.platform.make_thread("general", "flour", answer)
    message = await stored(bot, await bot.platform.say("why?", thread="flour"), thread=answer)
    assert (message.quoted, message.quotes_bot) == ("Rye.", True)


async def test_an_unreadable_part_costs_only_itself(bot: DiscordBot) -> None:
    broken: dict[str, Any] = {
        "embeds": [None],
        "attachments": 5,
        "poll": {"question": None},
        "components": [{"type": 1}],
        "message_snapshots": [{}],
        "reactions": ["x"],
        "sticker_items": {"a": 1},
        "interaction_metadata": [],
        "thread": [],
        "flags": "many",
    }
    for part, value in broken.items():
        await bot.platform.say(part, **{part: value})
    await bot.platform.say("all of them", **broken)
    await bot.shows(*["ok"] * (len(broken) + 1))
    asked = [request.messages[-1].content.removeprefix("Mei: ") for request in bot.engine.requests]
    assert asked == [*broken, "all of them"]


@pytest.mark.parametrize("field", ["mentions", "member", "author", "mention_roles"])
async def test_an_unreadable_person_costs_no_message(bot: DiscordBot, field: str) -> None:
    mei, me = bot.platform.person("Mei"), bot.platform.bot
    broken: dict[str, Json] = {
        "mentions": {"mentions": [{"id": None}, me, {"id": "5"}, None]},
        "member": {"member": {"roles": 5}},
        "author": {"author": {"id": mei["id"], "username": "Mei", "avatar": []}},
        "mention_roles": {"mention_roles": [None]},
    }
    message = payloads.message(
        bot.platform._new_id(), bot.platform.channel("general"), mei, f"<@{BOT}> hi", mentions=[me]
    )
    bot.platform.send_as_it_is("MESSAGE_CREATE", {**message, "guild_id": str(GUILD), **broken[field]})
    await bot.shows("ok")
    assert bot.engine.requests[0].messages[-1].content == "Mei: hi"


async def test_a_reply_to_a_message_the_library_cannot_read_quotes_its_text(bot: DiscordBot) -> None:
    pointed = await bot.platform.say("the words", author="Ben", mention=False)
    bot.platform.messages[int(pointed)]["attachments"] = [{"id": "x"}]
    assert (await stored(bot, await bot.platform.say("explain", reply_to=pointed))).quoted == "the words"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("<t:1700000000:F>", "2023-11-14 22:13 UTC"),
        ("<t:1700000000>", "2023-11-14 22:13 UTC"),
        ("<t:1700000000:R>", "2023-11-14 22:13 UTC"),
        ("<t:1700000000:D>", "2023-11-14"),
        ("<t:1700000001:T>", "22:13:21 UTC"),
        ("<t:-86400:t>", "00:00 UTC"),
        ("<t:99999999999999999:F>", "<t:99999999999999999:F>"),
        ("use </clear:1234567890> now", "use /clear now"),
        ("</role add:123456>", "/role add"),
        ("<id:customize> and <id:browse>", "Channels & Roles and Browse Channels"),
        ("<id:linked-roles:123>", "Linked Roles"),
        (
            "start at <id:home>, then <id:guide> and <id:linked-roles>",
            "start at Server Guide, then Server Guide and Linked Roles",
        ),
        ("<sound:1:2>", "sound"),
        ("<:blob:123> <a:party_blob:456>", ":blob: :party_blob:"),
        ("<@&177777777777777777> in <#177777777777777777>", "@unknown-role in #unknown"),
        ("谁是 <@!177777777777777777>？", "谁是 @unknown-user？"),
        ("`<t:1700000000:F>` shows a date", "`<t:1700000000:F>` shows a date"),
        ("```\n</clear:1>\n```", "```\n</clear:1>\n```"),
        ("a < b > c, x<t:y>", "a < b > c, x<t:y>"),
    ],
)
async def test_notation_is_read_as_words(bot: DiscordBot, written: str, read: str) -> None:
    assert (await stored(bot, await bot.platform.say(written))).text == read


async def test_an_edit_that_adds_the_mention_is_a_question(bot: DiscordBot) -> None:
    message = await bot.platform.say("what is 6*7?", mention=False)
    mention(bot, message, "what is 6*7, please?")
    await bot.shows("ok")
    assert bot.engine.requests[0].messages[-1].content == "Mei: what is 6*7, please?"
    mention(bot, message, "what is 6*8?")
    await bot.shows("ok")
    await bot.platform.until(lambda: len(bot.engine.requests) == 2)
    assert bot.platform.seen()[-1].reply_to == message


async def test_an_edit_that_adds_the_bots_role_is_a_question(bot: DiscordBot) -> None:
    role: Json = {"mention_roles": [str(BOT_ROLE)], "mentions": [], "content": f"<@&{BOT_ROLE}> 月亮有多远？"}
    live = await bot.platform.say("月亮有多远？", mention=False)
    mention(bot, live, "", **role)
    await bot.shows("ok")
    missed = await bot.platform.say("太阳呢？", mention=False)
    await bot.platform.say("next")
    await bot.shows("ok", "ok")
    await bot.platform.disconnect(resumable=False)
    mention(bot, missed, "", **role)
    await bot.shows("ok", "ok", "ok")
    assert bot.engine.requests[0].messages[-1].content == "Mei: 月亮有多远？"
    assert bot.platform.seen()[-1].reply_to == missed


def mention(bot: DiscordBot, message_id: str, text: str, **more: Any) -> None:
    """Edit a message so that it mentions the bot."""
    message = bot.platform.messages[int(message_id)]
    edited = {"edited_timestamp": payloads.now(), "mentions": [bot.platform.bot], "content": f"<@{BOT}> {text}"}
    message |= edited | more
    bot.platform.send_event("MESSAGE_UPDATE", message)


async def test_an_edit_of_an_old_message_is_no_question(bot: DiscordBot) -> None:
    old = payloads.message(discord_id(LONG_AGO), bot.platform.channel("general"), bot.platform.person("Mei"), "once")
    bot.platform.messages[int(old["id"])] = old
    mention(bot, old["id"], "again?")
    await bot.platform.say("and now?")
    await bot.shows("ok")
    assert len(bot.engine.requests) == 1


def discord_id(time: str) -> int:
    return (int(datetime.fromisoformat(time).timestamp() * 1000) - 1420070400000) << 22


@pytest.mark.parametrize("is_missed", [False, True])
async def test_an_edited_message_of_an_app_is_quoted_as_it_is_now(bot: DiscordBot, is_missed: bool) -> None:
    embed = {"type": "rich", "title": "Deployed", "description": "with the key hunter2"}
    said = await bot.platform.say("", webhook_id="5", mention=False, embeds=[embed])
    question = await bot.platform.say("explain", reply_to=said)
    await bot.shows("ok")
    await bot.all_is_delivered()
    assert (await stored(bot, question)).quoted == "Deployed\nwith the key hunter2"
    if is_missed:
        await bot.platform.disconnect(resumable=False)
    message = bot.platform.messages[int(said)]
    message |= {"embeds": [embed | {"description": "with a key"}], "edited_timestamp": payloads.now()}
    bot.platform.send_event("MESSAGE_UPDATE", message)
    async with asyncio.timeout(TIMEOUT):
        while (await stored(bot, question)).quoted != "Deployed\nwith a key":
            pass


async def test_an_edit_that_removes_the_mention_replaces_the_text(bot: DiscordBot) -> None:
    question = await bot.platform.say("my password is swordfish")
    await bot.shows("ok")
    message = bot.platform.messages[int(question)]
    message |= {"content": "never mind", "mentions": [], "edited_timestamp": payloads.now()}
    bot.platform.send_event("MESSAGE_UPDATE", message)
    await bot.platform.until(lambda: len(bot.engine.requests) == 2)
    assert (await stored(bot, question)).text == "never mind"


async def test_an_edit_whose_text_is_withheld_deletes_the_old_one(platform: DiscordPlatform, tmp_path: Path) -> None:
    platform.allows_content = False
    async with run_discord_bot(platform, tmp_path) as bot:
        question = await platform.say("my password is swordfish")
        await bot.shows("ok")
        message = platform.messages[int(question)]
        message |= {"content": "never mind", "mentions": [], "edited_timestamp": payloads.now()}
        platform.send_event("MESSAGE_UPDATE", message)
        await platform.say("next")
        await bot.shows("ok", "ok")
        assert [message.content for message in bot.engine.requests[1].messages] == ["Mei: next"]


async def test_without_the_intent_a_second_edit_can_add_the_mention(platform: DiscordPlatform, tmp_path: Path) -> None:
    platform.allows_content = False
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("first")
        await bot.shows("ok")
        said = await platform.say("who knos this?", mention=False)
        await platform.edit(said, "who knows this?")
        mention(bot, said, "who knows this?")
        await bot.shows("ok", "ok")
        assert platform.seen()[-1].reply_to == said


@pytest.mark.parametrize("missing", [("author",), ("content",), ("author", "content", "mentions", "type")])
async def test_an_edit_event_without_the_message_is_fetched(bot: DiscordBot, missing: tuple[str, ...]) -> None:
    question = await bot.platform.say("before")
    await bot.shows("ok")
    message = bot.platform.messages[int(question)]
    message |= {"content": f"<@{BOT}> after", "edited_timestamp": payloads.now()}
    event = {name: value for name, value in message.items() if name not in missing}
    bot.platform.send_event("MESSAGE_UPDATE", {**event, "guild_id": str(GUILD)})
    await bot.platform.until(lambda: len(bot.engine.requests) == 2)
    assert (await stored(bot, question)).text == "after"


async def test_an_edit_event_with_only_a_link_preview_is_no_edit(bot: DiscordBot) -> None:
    question = await bot.platform.say("https://example.org")
    await bot.shows("ok")
    partial = {"id": question, "channel_id": str(bot.platform.channel("general")), "embeds": [{"type": "link"}]}
    with structlog.testing.capture_logs() as logs:
        bot.platform.send_event("MESSAGE_UPDATE", partial)
        await bot.platform.say("next")
        await bot.shows("ok", "ok")
    assert len(bot.engine.requests) == 2
    assert [entry for entry in logs if "malformed" in entry["event"]] == []


@pytest.mark.parametrize("kind", ["mentions another", "replies to another", "shows a picture", "calls everyone"])
async def test_in_a_thread_messages_for_others_are_not_answered(bot: DiscordBot, kind: str) -> None:
    await bot.platform.say("hi", thread="tea")
    await bot.shows("ok", thread="tea")
    ben = bot.platform.person("Ben")
    match kind:
        case "mentions another":
            await bot.platform.say(f"<@{ben['id']}> lunch?", thread="tea", mention=False, mentions=[ben])
        case "replies to another":
            said = await bot.platform.say(
                "<@&1> lunch", thread="tea", author="Ben", mention=False, mention_everyone=True
            )
            await bot.platform.say("yes", thread="tea", mention=False, reply_to=said)
        case "shows a picture":
            await bot.platform.say("", thread="tea", mention=False)
        case _:
            await bot.platform.say("@everyone lunch!", thread="tea", mention=False, mention_everyone=True)
    await bot.platform.say("and you?", thread="tea", mention=False)
    await bot.shows("ok", "ok", thread="tea")
    assert len(bot.engine.requests) == 2


async def test_a_message_in_an_unknown_server_is_not_direct(bot: DiscordBot) -> None:
    said = payloads.message(bot.platform._new_id(), 177777777777777777, bot.platform.person("Mei"), "not for the bot")
    bot.platform.send_event("MESSAGE_CREATE", {**said, "guild_id": "177777777777777778"})
    await bot.platform.say("for the bot")
    await bot.shows("ok")
    assert len(bot.engine.requests) == 1
