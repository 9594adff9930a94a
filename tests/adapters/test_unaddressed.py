"""Messages that mention nobody, where `answer = "all"` or `triggers` make them questions; others stay unanswered."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bot.config.places import PlaceSection
from bot.config.schema import Config
from tests.harness import slack_harness, telegram_harness
from tests.harness.discord_harness import run_discord_bot
from tests.harness.harness import Harness
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import TelegramPlatform


@dataclass(frozen=True, slots=True)
class Mode:
    """A setting of a channel, how a question begins there, and a message that is none there."""

    place: PlaceSection
    begins: tuple[str, str]
    is_none: str | None = None

    @property
    def questions(self) -> list[str]:
        return [f"{word}{rest}" for word, rest in zip(self.begins, ("what is a shell", "and a kernel"), strict=True)]

    def configure(self, harness: Harness, channel: str) -> None:
        harness.settings.reconfigure(Config(channels={channel: self.place}))


MODES = {
    "all": Mode(PlaceSection(answer="all"), ("", "")),
    "triggers": Mode(PlaceSection(triggers=("glm", "小智")), ("GLM, ", "小智"), "my glm is slow"),
}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    return MODES[request.param]


def asked(harness: Harness) -> list[str]:
    return [request.messages[-1].content.rpartition(": ")[2] for request in harness.engine.requests]


async def test_on_discord(platform: DiscordPlatform, tmp_path: Path, mode: Mode) -> None:
    first, second = mode.questions
    async with run_discord_bot(platform, tmp_path) as bot:
        mode.configure(bot.harness, f"discord:{platform.channel('general')}")
        await platform.say(first, channel="random", mention=False)
        said = await platform.say(first, mention=False)
        await bot.shows("ok")
        if mode.is_none is not None:
            await platform.say(mode.is_none, mention=False)
        await platform.say(f"{first}, everyone", mention=False, mention_everyone=True)
        await platform.say(f"{first}, no, you", mention=False, reply_to=said)
        await platform.say(second, mention=False)
        await bot.shows("ok", "ok")
        assert asked(bot.harness) == [first, second]


async def test_on_discord_what_was_missed_is_answered_too(
    platform: DiscordPlatform, tmp_path: Path, mode: Mode
) -> None:
    first, second = mode.questions
    async with run_discord_bot(platform, tmp_path) as bot:
        mode.configure(bot.harness, f"discord:{platform.channel('general')}")
        await platform.say(first, mention=False)
        await bot.shows("ok")
        await platform.disconnect(resumable=False)
        if mode.is_none is not None:
            await platform.say(mode.is_none, mention=False)
        await platform.say(second, mention=False)
        await bot.shows("ok", "ok")
        assert asked(bot.harness) == [first, second]


async def test_on_telegram(harness: Harness, mode: Mode) -> None:
    first, second = mode.questions
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        mode.configure(harness, f"telegram:{telegram.group('general').id}")
        await telegram.say(first, channel="random", mention=False)
        await telegram.say(first, mention=False)
        await telegram_harness.done(telegram, "ok")
        if mode.is_none is not None:
            await telegram.say(mode.is_none, mention=False)
        to_ben = await telegram.say(f"{first}, @Ben_the_builder, you?", mention=False)
        await telegram.say(f"{first}, no, you", author="Ben", mention=False, reply_to=to_ben)
        await telegram.say(second, mention=False)
        await telegram_harness.done(telegram, "ok", "ok")
    assert asked(harness) == [first, second]


async def test_on_slack(harness: Harness, mode: Mode) -> None:
    first, second = mode.questions
    async with SlackServer() as server, slack_harness.running(harness, server):
        mode.configure(harness, f"slack:{server.workspace.channel('general')}")
        await server.say(first, channel="random", mention=False)
        await server.say(first, mention=False)
        await slack_harness.answered(server, "ok")
        if mode.is_none is not None:
            await server.say(mode.is_none, mention=False)
        await server.say(f"{first}, <@U0000BEN>, you?", mention=False)
        await server.say(second, mention=False)
        await slack_harness.answered(server, "ok", "ok")
    assert asked(harness) == [first, second]


# Small talk that is the name of a command, and what follows it to show that nothing was carried out.
SMALL_TALK = ("Retry", "forget me", "settings", "is it done?")
ALL = Mode(PlaceSection(answer="all"), ("", ""))


async def test_on_discord_a_word_of_small_talk_is_no_command(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        ALL.configure(bot.harness, f"discord:{platform.channel('general')}")
        await platform.say("what is a shell")
        await bot.shows("ok")
        for number, text in enumerate(SMALL_TALK):
            await platform.say(text, mention=False)
            await bot.shows(*["ok"] * (number + 2))
        assert asked(bot.harness) == ["what is a shell", *SMALL_TALK]
        assert len(bot.harness.engine.requests[-1].messages) == 9
        await platform.say("forget me", mention=False, reply_to=platform.seen()[-1].id)
        await bot.shows(*["ok"] * 5, "Deleted: all your messages to me (5), and my answers.")


async def test_on_telegram_and_slack_a_word_of_small_talk_is_no_command(harness: Harness) -> None:
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        ALL.configure(harness, f"telegram:{telegram.group('general').id}")
        for number, text in enumerate(SMALL_TALK):
            await telegram.say(text, mention=False)
            await telegram_harness.done(telegram, *["ok"] * (number + 1))
        await telegram.say("Limits")
        await telegram_harness.done(telegram, *["ok"] * len(SMALL_TALK), "Only admins may do that.")
    async with SlackServer() as server, slack_harness.running(harness, server):
        ALL.configure(harness, f"slack:{server.workspace.channel('general')}")
        for number, text in enumerate(SMALL_TALK):
            await server.say(text, mention=False)
            await slack_harness.answered(server, *["ok"] * (number + 1))
        await server.say("Limits")
        await slack_harness.answered(server, *["ok"] * len(SMALL_TALK), "Only admins may do that.")
    assert asked(harness) == [*SMALL_TALK, *SMALL_TALK]


async def test_on_discord_a_person_without_the_right_is_refused_only_after_a_mention(
    platform: DiscordPlatform, tmp_path: Path, mode: Mode
) -> None:
    first, second = mode.questions
    asker = f"discord:{platform.person('Mei')['id']}"
    guarded = replace(mode, place=mode.place.model_copy(update={"who": (asker,)}))
    async with run_discord_bot(platform, tmp_path) as bot:
        guarded.configure(bot.harness, f"discord:{platform.channel('general')}")
        refusals = ["You may not ask me here."] if "triggers" in mode.place.model_fields_set else []
        await platform.say(first, author="Ben", mention=False)
        await bot.shows(*refusals)
        await platform.say(second, mention=False)
        await bot.shows(*refusals, "ok")
        await platform.say("me too", author="Ben")
        await bot.shows(*refusals, "ok", "You may not ask me here.")


@pytest.mark.parametrize("answer", ["mention", "all"])
async def test_on_slack_and_telegram_a_person_without_the_right_is_ignored(harness: Harness, answer: str) -> None:
    place = PlaceSection(answer=answer, who=("managers",))  # type: ignore[arg-type]
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        telegram.administrators.add("Mei")
        Mode(place, ("", "")).configure(harness, f"telegram:{telegram.group('general').id}")
        await telegram.say("what is a shell", thread="topic")
        await telegram_harness.done(telegram, "ok", thread="topic")
        await telegram.say("nice", author="Ben", mention=False, thread="topic")
        await telegram.say("and a kernel", mention=False, thread="topic")
        await telegram_harness.done(telegram, "ok", "ok", thread="topic")
    async with SlackServer() as server, slack_harness.running(harness, server):
        server.workspace.creators["general"] = "Mei"
        Mode(place, ("", "")).configure(harness, f"slack:{server.workspace.channel('general')}")
        first = await server.say("what is a shell")
        await slack_harness.answered(server, "ok")
        await server.say("nice", author="Ben", mention=False, thread=first)
        await server.say("and a kernel", mention=False, thread=first)
        await slack_harness.answered(server, "ok", "ok")
        await server.say("me too", author="Ben", thread=first)
        refusal = "Only admins and those who manage this channel may ask me here."
        await slack_harness.answered(server, "ok", "ok", refusal)


async def test_on_discord_a_trigger_that_an_edit_adds_counts(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        MODES["triggers"].configure(bot.harness, f"discord:{platform.channel('general')}")
        said = await platform.say("gml what is a shell", mention=False)
        await platform.edit(said, "my glm is slow")
        await platform.edit(said, "glm what is a shell")
        await bot.shows("ok")
        assert asked(bot.harness) == ["glm what is a shell"]


async def test_on_telegram_a_trigger_that_an_edit_adds_counts(harness: Harness) -> None:
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        MODES["triggers"].configure(harness, f"telegram:{telegram.group('general').id}")
        await telegram.edit(await telegram.say("小志你好", mention=False), "小智你好")
        await telegram_harness.done(telegram, "ok")
    assert asked(harness) == ["小智你好"]


async def test_on_slack_a_trigger_that_an_edit_adds_counts(harness: Harness) -> None:
    async with SlackServer() as server, slack_harness.running(harness, server):
        MODES["triggers"].configure(harness, f"slack:{server.workspace.channel('general')}")
        await server.edit(await server.say("小志你好", mention=False), "小智你好")
        await slack_harness.answered(server, "ok")
    assert asked(harness) == ["小智你好"]


@pytest.mark.parametrize(
    ("command", "shown", "question"),
    [
        ("/settings answer all", "`answer` = all", "what is a shell"),
        ("/settings answer ALL", "`answer` = all", "what is a shell"),
        ("/settings triggers glm, hey bot", "`triggers` = `glm`, `hey bot`", "Hey bot what is a shell"),
    ],
)
async def test_it_is_set_in_the_chat(
    platform: DiscordPlatform, tmp_path: Path, command: str, shown: str, question: str
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        platform.managers.add("Mei")
        said = f"From the next message on:\n\n- {shown} (for this channel, set in the chat)"
        await platform.say(command)
        await bot.shows(said)
        await platform.say(question, author="Ben", mention=False)
        await bot.shows(said, "ok")
        assert asked(bot.harness) == [question]
