"""Slack: what a message points at, notation, late and changed events."""

from typing import Any

import pytest

from bot.adapters import inspect
from bot.config.schema import AccessSection
from bot.domain import IncomingMessage, Status
from tests.harness.harness import Harness, make_harness
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.slack_wire import TEAM
from tests.harness.servers.slack_world import BOT, Message
from tests.harness.slack_harness import answered, asked, becomes, bots, running


async def stored(harness: Harness, server: SlackServer, ts: str, channel: str = "general") -> IncomingMessage:
    """Wait until a question is answered; return it as it was stored."""
    place = server.workspace.find(channel)
    assert place is not None
    return (await becomes(harness, Status.DELIVERED, place, ts)).message


def share(server: SlackServer, text: str = "", *, direct: bool = True, **values: Any) -> Message:
    """Send a user's message with attachments."""
    place = server.workspace.direct("Mei") if direct else server.workspace.channel("general")
    message = server.workspace.post(place, server.workspace.user("Mei"), text=text, **values)
    server.emit({**message.event(), "channel_type": "im" if direct else "channel"})
    return message


# What a message points at

ALERTS: dict[str, tuple[dict[str, Any], str]] = {
    "an attachment": (
        {"attachments": [{"fallback": "Disk 95 %", "title": "Disk 95 %", "text": "on &lt;db1&gt;", "color": "danger"}]},
        "Disk 95 %\non <db1>",
    ),
    "fields": (
        {"attachments": [{"fields": [{"title": "Host", "value": "db1"}, {"title": "Load", "value": "97"}]}]},
        "Host\ndb1\nLoad\n97",
    ),
    "a fallback": ({"attachments": [{"fallback": "build failed", "image_url": "https://a.b/c.png"}]}, "build failed"),
    "blocks": (
        {
            "text": "New alert",
            "blocks": [
                {"type": "header", "text": {"type": "plain_text", "text": "Backup & restore"}},
                {"type": "section", "text": {"type": "mrkdwn", "text": "see <https://a.b|the log>"}},
                {"type": "actions", "elements": [{"type": "button", "text": {"type": "plain_text", "text": "Mute"}}]},
            ],
        },
        "Backup & restore\nsee the log (https://a.b)",
    ),
    "rich text": (
        {
            "blocks": [
                {
                    "type": "rich_text",
                    "elements": [
                        {
                            "type": "rich_text_section",
                            "elements": [
                                {"type": "text", "text": "1 < 2 for "},
                                {"type": "user", "user_id": "U001"},
                                {"type": "emoji", "name": "tada"},
                            ],
                        },
                        {
                            "type": "rich_text_list",
                            "elements": [
                                {"type": "rich_text_section", "elements": [{"type": "text", "text": "first"}]},
                                {"type": "rich_text_section", "elements": [{"type": "link", "url": "https://a.b"}]},
                            ],
                        },
                    ],
                }
            ]
        },
        "1 < 2 for @Mei:tada:\nfirst\nhttps://a.b",
    ),
    "a file": ({"files": [{"id": "F1", "title": "Q3 report.pdf", "name": "q3.pdf"}]}, "Q3 report.pdf"),
}


@pytest.mark.parametrize("kind", ALERTS)
async def test_a_thread_under_an_apps_message_quotes_what_it_shows(
    harness: Harness, server: SlackServer, kind: str
) -> None:
    shown, words = ALERTS[kind]
    server.workspace.user("Mei")
    alert = server.workspace.post(
        server.workspace.channel("general"), "UALERT", **{"text": "", "bot": "B77", "subtype": "bot_message", **shown}
    )
    async with running(harness, server):
        question = await server.say("what should I do?", thread=alert.ts)
        message = await stored(harness, server, question)
    assert (message.quoted, message.quoted_id, message.quotes_bot) == (words, alert.ts, False)
    assert words.partition("\n")[0] in asked(harness, 0)[-1]


async def test_a_mention_alone_asks_what_its_thread_begins_with(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        root = await server.say("Which planet has the most moons?", author="Ben", mention=False)
        question = await server.say("", thread=root)
        message = await stored(harness, server, question)
    assert (message.text, message.quoted) == ("", "Which planet has the most moons?")
    assert "Which planet has the most moons?" in asked(harness, 0)[-1]


async def test_a_thread_under_the_bots_answer_says_whose_it_is(harness: Harness, server: SlackServer) -> None:
    harness.engine.add("Saturn, with **145** moons & more", "since 2023")
    async with running(harness, server):
        await server.say("most moons?", direct=True)
        await answered(server, "Saturn, with **145** moons & more", channel="Mei")
        answer = server.seen("Mei")[1].id
        question = await server.say("since when?", direct=True, reply_to=answer)
        message = await stored(harness, server, question, "Mei")
    assert (message.quoted, message.quoted_id) == ("Saturn, with **145** moons & more", answer)
    assert message.quotes_bot


@pytest.mark.parametrize("author", ["U777", BOT])
async def test_a_shared_message_is_quoted(harness: Harness, server: SlackServer, author: str) -> None:
    shared = {
        "is_share": True,
        "is_msg_unfurl": True,
        "from_url": "https://loopback.slack.com/archives/C9/p1700000000000100",
        "author_id": author,
        "channel_id": "C9",
        "ts": "1700000000.000100",
        "fallback": "[November 14th] ann: fixed in &lt;v2&gt;",
        "text": "fixed in &lt;v2&gt;",
    }
    async with running(harness, server):
        question = share(server, attachments=[shared])
        message = await stored(harness, server, question.ts, "Mei")
    assert (message.text, message.quoted) == ("", "fixed in <v2>")
    assert message.quoted_id is None  # it belongs to another channel
    assert message.quotes_bot is (author == BOT)


async def test_a_message_shared_within_its_channel_has_its_id(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        before = await server.say("the code is blue", author="Ben", mention=False)
        place = server.workspace.channel("general")
        shared = {"is_share": True, "channel_id": place, "ts": before, "text": "the code is blue"}
        question = share(server, f"<@{BOT}> which?", direct=False, attachments=[shared])
        message = await stored(harness, server, question.ts)
    assert (message.text, message.quoted, message.quoted_id) == ("which?", "the code is blue", before)


async def test_attachments_and_blocks_of_no_shape_cost_no_message(harness: Harness, server: SlackServer) -> None:
    deep: Any = "x"
    for _ in range(200):
        deep = {"elements": [deep]}
    async with running(harness, server):
        for attachments in ([None, 7, {"is_share": True, "text": 7}], [{"from_url": 1, "blocks": deep}], "text"):
            question = share(server, "hello", attachments=attachments)
            await stored(harness, server, question.ts, "Mei")
    assert len(harness.engine.requests) == 3


# Notation


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("compare <#{news}|> and <#{news}>", "compare #news and #news"),
        ("in <#C404|> and <#C405|old-name>", "in #C404 and #old-name"),
        ("by <!date^1700000000^{{date_short_pretty}}|Nov 14> or <!date^1700000000^{{date}}>", "by Nov 14 or 2023-11-14 22:13 UTC"),
        ("ask <!subteam^S01|@ops>, <!subteam^S02> or <!here|here>", "ask @ops, @S02 or @here"),
        ("read <https://a.b/read-this|this> and <https://a.b/|a.b>", "read this (https://a.b/read-this) and a.b"),
        ("<@U404|kim> wrote <mailto:a@b.c|a@b.c> &amp;lt; <https://a.b/?x=1&amp;y=2>", "@kim wrote a@b.c &lt; https://a.b/?x=1&y=2"),
    ],
)  # fmt: skip
async def test_notation_reaches_the_model_as_people_see_it(
    harness: Harness, server: SlackServer, said: str, read: str
) -> None:
    news = server.workspace.channel("news")
    async with running(harness, server):
        await server.say(said.format(news=news), direct=True)
        await answered(server, "ok", channel="Mei")
    assert asked(harness, 0) == [read]


async def test_channels_are_looked_up_once_and_for_a_bounded_number(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        for _ in range(2):
            await server.say(" ".join(f"<#C9{number}>" for number in range(90)), direct=True)
            await server.until(lambda: server.is_quiet)
    assert server.calls.count("conversations.info") == 20


# Edits and deletions


async def test_an_edit_that_calls_the_bot_is_a_question(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        remark = await server.say("how far is the moon?", mention=False)
        await server.edit(remark, f"<@{BOT}> how far is the moon?")
        await answered(server, "ok")
        await server.edit(remark, f"<@{BOT}> how far is the sun?")
        await server.until(lambda: len(harness.engine.requests) == 2)
    assert asked(harness, 0) == ["Mei: how far is the moon?"]
    assert asked(harness, 1) == ["Mei: how far is the sun?"]
    assert len(bots(server.seen())) == 1


async def test_an_old_message_that_is_edited_to_call_the_bot_is_left_alone(
    harness: Harness, server: SlackServer
) -> None:
    async with running(harness, server):
        old = server.workspace.post(server.workspace.channel("general"), server.workspace.user("Mei"), text="hm")
        del server.workspace.messages[old.ts]
        old.ts = "1600000000.000100"
        server.workspace.messages[old.ts] = old
        await server.edit(old.ts, f"<@{BOT}> hm")
        await server.until(lambda: server.is_quiet)
        await server.say("hello")
        await answered(server, "ok")
    assert len(harness.engine.requests) == 1


async def test_an_edit_that_removes_the_mention_replaces_the_text(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        question = await server.say("my number is 555-0100")
        await answered(server, "ok")
        server.workspace.messages[question].text = "my number is 555-0100"  # so that the edit has no mention
        await server.edit(question, "nothing")
        await server.until(lambda: len(harness.engine.requests) == 2)
        message = await stored(harness, server, question)
    assert message.text == "nothing"


@pytest.mark.parametrize("direct", [False, True])
async def test_a_deletion_that_arrives_before_its_message_is_remembered(
    harness: Harness, server: SlackServer, direct: bool
) -> None:
    place = server.workspace.direct("Mei") if direct else server.workspace.channel("general")
    async with running(harness, server):
        text = "a secret" if direct else f"<@{BOT}> a secret"
        message = server.workspace.post(place, server.workspace.user("Mei"), text=text)
        del server.workspace.messages[message.ts]
        deletion = {"type": "message", "subtype": "message_deleted", "channel": place, "deleted_ts": message.ts}
        server.emit({**deletion, "ts": server.workspace.now(), "previous_message": message.event()})
        await server.until(lambda: server.is_quiet)
        server.emit(message.event())  # delivered again
        await server.until(lambda: server.is_quiet)
        await server.say("hello")
        await answered(server, "ok")
    assert len(harness.engine.requests) == 1


# Settings


async def test_a_slash_command_belongs_to_the_workspace_it_names(server: SlackServer, tmp_path: Any) -> None:
    rules = AccessSection(allow_servers=(f"slack:{TEAM}",))
    async with make_harness(tmp_path, access=rules) as harness, running(harness, server):
        await server.command("status")
        await server.until(lambda: "scripted" in "".join(bots(server.seen())))
        shown = len(bots(server.seen()))
        server.team = "T02"
        await server.command("status")
        await server.until(lambda: server.is_quiet)
        assert len(bots(server.seen())) == shown


async def test_check_online_does_not_judge_scopes_that_are_not_told(server: SlackServer) -> None:
    server.tells_scopes = False
    findings = [finding async for finding in inspect("slack", server.settings())]
    assert all(finding.is_ok for finding in findings)
    assert "does not tell which scopes" in findings[1].text
