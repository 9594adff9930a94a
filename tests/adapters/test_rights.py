"""Who may use which command and which button, on each platform, through its library."""

import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from bot.chat.access import OPERATOR
from bot.chat.commands import COMMANDS
from bot.config.schema import AccessSection, Config
from bot.domain import Action, ChannelKey
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.harness import NO_LIMITS, set_paused
from tests.harness.messages import a_message
from tests.harness.platform import Seen
from tests.harness.platform_bench import PROFILES, Bench, open_bench

PEOPLE = {"user": "Uma", "manager": "Max", "admin": "Ada", "manager of another place": "Eve"}
EVERYBODY, MANAGERS, ADMINS = set(PEOPLE), {"manager", "admin"}, {"admin"}
# As docs/COMMANDS.md and docs/CHANNELS.md say; /stop and /retry are those of the buttons.
RIGHTS: dict[str, set[str]] = {
    "help": EVERYBODY,
    "status": EVERYBODY,
    "usage show": EVERYBODY,
    "persona show": EVERYBODY,
    "model": EVERYBODY,
    "settings show": EVERYBODY,
    "settings temperature": EVERYBODY,
    "persona set You are a parrot.": MANAGERS,
    "persona use pirate": MANAGERS,
    "persona clear": MANAGERS,
    "model engine": MANAGERS,
    "model clear": MANAGERS,
    "settings answer mention": MANAGERS,
    "settings answer thread": MANAGERS,
    "settings triggers hey": MANAGERS,
    "settings history member": MANAGERS,
    "settings language en": MANAGERS,
    "settings temperature 0.5": MANAGERS,
    "settings top_p 0.5": MANAGERS,
    "settings max_answer_tokens 128": MANAGERS,
    "settings show_thoughts true": MANAGERS,
    "settings name_speakers true": MANAGERS,
    "settings share_answers true": EVERYBODY,
    "settings undo": MANAGERS,
    "settings changes": MANAGERS,
    "usage server": ADMINS,
    "pause": ADMINS,
    "resume": ADMINS,
    "limits": ADMINS,
    "signin": ADMINS,
    "clear": EVERYBODY,
    "forget me": EVERYBODY,
}
# What is in force before such a command, so that it changes something.
BEFORE = {
    "persona use pirate": "persona use poet",
    "persona clear": "persona use poet",
    "model clear": "model engine",
    "settings undo": "settings temperature 0.9",
}
CONFIG: dict[str, Any] = {
    "personas": {"pirate": {"system_prompt": "You are a pirate."}, "poet": {"system_prompt": "You are a poet."}},
    "platforms": {name: {"models": ["engine"]} for name in PROFILES},
}
REFUSAL = re.compile("^Only (admins|the person who asked)")
every_platform = pytest.mark.parametrize("name", PROFILES)


@asynccontextmanager
async def open_place(name: str) -> AsyncIterator[tuple[Bench, ScriptedEngine]]:
    """Run the bot where one person manages the channel, another one a different channel, and a third is an admin."""

    @asynccontextmanager
    async def appointed(platform: Any) -> AsyncIterator[None]:
        match name:
            case "discord":
                platform.channel_managers |= {"general": {"Max"}, "elsewhere": {"Eve"}}
            case "telegram":
                platform.group_administrators |= {"general": {"Max"}, "elsewhere": {"Eve"}}
            case _:
                platform.workspace.creators |= {"general": "Max", "elsewhere": "Eve"}
        for channel in ("general", "elsewhere"):
            place_of(platform, channel)
        yield

    engine = ScriptedEngine(default="an answer")
    async with open_bench(name, engine, FastClock(), around=appointed) as bench:
        appoint(bench, "Ada")
        bench.intake.settings.reconfigure(Config(**CONFIG))
        yield bench, engine


def appoint(bench: Bench, *names: str) -> None:
    """Let these people be the admins."""
    platform: Any = bench.platform
    ids = [platform.workspace.user(each) if platform.name == "slack" else platform.person(each)["id"] for each in names]
    access = AccessSection(admins=tuple(f"{platform.name}:{id}" for id in ids))
    bench.intake.access.reconfigure(access, NO_LIMITS)


def place_of(platform: Any, channel: str) -> ChannelKey:
    match platform.name:
        case "discord":
            id = platform.channel(channel)
        case "telegram":
            id = platform.group(channel).id
        case _:
            id = platform.workspace.channel(channel)
    return ChannelKey(platform.name, str(id))


async def set_by_operator(bench: Bench, text: str) -> None:
    place = place_of(bench.platform, "general")
    await bench.intake.forms.carry_out(a_message(f"/{text}", channel=place, author=OPERATOR, is_direct=False))


async def prepare(bench: Bench, text: str) -> None:
    """Let a change by this command be one, whoever used it before."""
    set_paused(bench.intake.access, is_paused=False)
    if text == "resume":
        set_paused(bench.intake.access)
    command, _, words = text.partition(" ")
    if command == "settings" and len(words.split()) == 2:
        await set_by_operator(bench, f"settings {words.split()[0]} clear")
    elif command in ("persona", "model") and words not in ("", "show"):
        await set_by_operator(bench, f"{command} clear")
    if text in BEFORE:
        await set_by_operator(bench, BEFORE[text])


def state(bench: Bench) -> tuple[bool, int]:
    """Return whether the bot is paused, and how often a setting was changed."""
    with closing(sqlite3.connect(f"file:{bench.database}?mode=ro", uri=True)) as database:
        (changes,) = database.execute("SELECT count(*) FROM settings").fetchone()
    return bench.intake.access.is_paused, changes


async def reply_to(bench: Bench, text: str, author: str, channel: str = "general") -> str:
    """Use a command, natively if the platform's menu has it; return the bot's words."""
    before = {seen.id for seen in bench.replies(channel)}
    opens_form = text in ("settings", "settings show")  # natively; test_settings_forms.py has its rights
    if opens_form or COMMANDS[text.partition(" ")[0]].is_for_admins:
        await bench.platform.say(f"/{text}", author=author, channel=channel)
    else:
        await bench.platform.command(text, author=author, channel=channel)

    def said() -> list[str]:
        return [
            seen.markdown
            for seen in bench.replies(channel)
            if seen.id not in before and seen.markdown.strip(" …\n\u2060")
        ]

    await bench.platform.until(lambda: bool(said()))
    return said()[-1]


@every_platform
async def test_every_command_does_what_the_table_of_rights_says(name: str) -> None:
    allowed: dict[str, set[str]] = {text: set() for text in RIGHTS}
    without_effect = {text for text, roles in RIGHTS.items() if roles == EVERYBODY} | {
        "settings changes",
        "usage server",
        "limits",
        "signin",
    }
    async with open_place(name) as (bench, _):
        for text in RIGHTS:
            for role, author in PEOPLE.items():
                await prepare(bench, text)
                before = state(bench)
                told = await reply_to(bench, text, author)
                is_allowed = not REFUSAL.match(told)
                if is_allowed:
                    allowed[text].add(role)
                if text not in ("forget me", "settings share_answers true"):  # they change what is one's own
                    is_changed = state(bench) != before
                    assert is_changed is (is_allowed and text not in without_effect), (text, role, told)
        await prepare(bench, "pause")
        assert not REFUSAL.match(await reply_to(bench, "persona use poet", "Eve", "elsewhere"))
    assert allowed == RIGHTS
    assert bench.platform.violations == []


def test_the_table_of_rights_has_every_command_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "COMMANDS.md").read_text(encoding="utf-8")
    written = set(re.findall(r"`(?:@bot )?/(\w+)", page)) - {"metrics", "ask"}  # a route, a question
    assert {text.partition(" ")[0] for text in RIGHTS} | {"stop", "retry"} == set(COMMANDS) == written
    for command in COMMANDS.values():
        for each in command.subcommands:
            assert any(text.startswith(f"{command.name} {each.name}") for text in RIGHTS), each.name


def refusals(bench: Bench) -> int:
    """Return how often somebody was told that a button is not theirs."""
    platform: Any = bench.platform
    told = (
        platform.answers.values()
        if platform.name == "telegram"
        else [each.markdown for each in bench.replies("general")]
    )
    return sum(bool(REFUSAL.match(text)) for text in told)


def answer_of(bench: Bench) -> Seen:
    return next(each for each in bench.replies("general") if each.actions)


@every_platform
@pytest.mark.parametrize("action", [Action.STOP, Action.RETRY])
async def test_buttons_are_for_the_asker_and_those_who_are_admins_then(name: str, action: Action) -> None:
    async with open_place(name) as (bench, engine):
        platform = bench.platform
        if action is Action.STOP:
            engine.go_on.clear()
        await platform.say("hello", author="Mei")
        await engine.asked(1)
        await platform.until(lambda: any(action in each.actions for each in bench.replies("general")))

        async def is_refused(author: str) -> bool:
            before, told = answer_of(bench), refusals(bench)
            await platform.press(before.id, action, author=author)
            await platform.until(lambda: refusals(bench) > told)
            return answer_of(bench) == before and len(engine.requests) == 1

        for author in ("Uma", "Max", "Eve"):
            assert await is_refused(author), author
        appoint(bench)
        assert await is_refused("Ada"), "an admin no more"
        appoint(bench, "Eve")
        await platform.press(answer_of(bench).id, action, author="Eve")
        if action is Action.STOP:
            await platform.until(lambda: any(Action.RETRY in each.actions for each in bench.replies("general")))
        else:
            await engine.asked(2)


@every_platform
@pytest.mark.parametrize("command", ["stop", "retry"])
async def test_an_answer_is_stopped_and_given_again_for_its_asker_and_admins(name: str, command: str) -> None:
    async with open_place(name) as (bench, engine):
        engine.go_on.clear()
        await bench.platform.say("hello", author="Mei", channel="general")
        await engine.asked(1)
        told = {author: await reply_to(bench, command, author) for author in ("Uma", "Max", "Eve")}
        engine.go_on.set()
        is_own = command == "retry" or name == "slack"  # on Slack the question is in a thread of its own
        words = {"stop": "Nothing is being answered here." if is_own else "Only the person who asked, and admins"}
        assert all(text.startswith(words.get(command, "You have no question here")) for text in told.values()), told
        assert len(engine.requests) == 1
