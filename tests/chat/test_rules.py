"""Settings by place and person: one outcome each, that of a second implementation of the precedence.

python -m tests.chat.test_rules [EXAMPLES]
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.chat.rules import Persona, Rule, Rules
from bot.config.places import PersonaSection, PlaceSection
from bot.config.schema import Config, table_of
from bot.domain import LEVELS, Author, ChannelKey, IncomingMessage, Scope, ScopeLevel, SettingChange
from tests.harness.messages import MEI, NOON, a_message

PERSONAS = ["cook", "parrot", "pirate", "poet"]
MODELS = ["big", "engine", "small"]
VALUES = {"persona": PERSONAS, "model": MODELS, "language": ["auto", "en", "zh"], "temperature": ["0.0", "0.5", "1.5"]}
# Settings that a conversation has, whoever writes there.
OF_PLACES: dict[str, list[str]] = {
    "answer": ["mention", "thread", "all"],
    "triggers": ["glm", "小智", "hey bot"],
    "history": ["shared", "member"],
    "who": ["everyone", "managers"],
}
VALUES |= OF_PLACES
PLAIN = sorted(VALUES.keys() - {"persona", "model", "who"})


@dataclass(frozen=True)
class Entry:
    """A setting of one scope, from the chat or from config.toml."""

    level: ScopeLevel
    id: str
    setting: str
    value: str
    is_from_chat: bool


def reference(message: IncomingMessage, setting: str, entries: list[Entry], roles: list[str]) -> Entry | None:
    """Return the entry in force: user > role (first listed) > thread > channel > server > platform; chat > config.toml."""
    platform, author, place = message.channel.platform, message.author, message.channel
    mine = {f"{platform}:{role}" for role in author.roles}
    applies: dict[str, Callable[[str], bool]] = {
        "user": lambda id: id == f"{platform}:{author.id}",
        "role": lambda id: id in mine,
        "thread": lambda id: place.thread is not None and id == f"{platform}:{place.channel}:{place.thread}",
        "channel": lambda id: id == f"{platform}:{place.channel}",
        "server": lambda id: message.server is not None and id == f"{platform}:{message.server}",
        "platform": lambda id: id == platform,
    }
    ladder = list(applies)
    order = {role: number for number, role in enumerate([*roles, *sorted(mine - set(roles))])}
    if setting in OF_PLACES:
        applies |= dict.fromkeys(["user", "role"], lambda id: False)
    found = [each for each in entries if each.setting == setting and applies[each.level](each.id)]
    return min(
        found,
        key=lambda each: (
            ladder.index(each.level),
            order[each.id] if each.level == "role" else 0,
            not each.is_from_chat,
        ),
        default=None,
    )


IDS = st.sampled_from(["1", "2", "3"])
PLATFORMS = st.sampled_from(["discord", "slack"])


@st.composite
def ids_of(draw: st.DrawFn, level: ScopeLevel) -> str:
    platform = draw(PLATFORMS)
    if level == "platform":
        return platform
    return ":".join([platform, draw(IDS), draw(IDS)] if level == "thread" else [platform, draw(IDS)])


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    level, setting = draw(st.sampled_from(LEVELS)), draw(st.sampled_from(sorted(VALUES)))
    value = draw(st.sampled_from(VALUES[setting]))
    return Entry(level, draw(ids_of(level)), setting, value, draw(st.booleans()))


@st.composite
def messages(draw: st.DrawFn) -> IncomingMessage:
    platform = draw(PLATFORMS)
    author = Author(platform, draw(IDS), "Mei", draw(st.frozensets(IDS)))
    place = ChannelKey(platform, draw(IDS), draw(st.none() | IDS))
    return a_message(author=author, channel=place, server=draw(st.none() | IDS))


SETS = st.lists(entries(), max_size=25, unique_by=lambda each: (each.level, each.id, each.setting, each.is_from_chat))


def rules_of(entries: list[Entry]) -> tuple[Rules, list[str]]:
    """Return the rules of these entries, and the roles in the order of config.toml."""
    tables: dict[str, Any] = {table_of(level): {} for level in LEVELS}
    tables["personas"] = {name: {"system_prompt": f"You are {name}."} for name in PERSONAS}
    tables["models"] = {name: {"model": "demo"} for name in MODELS if name != "engine"}
    for each in entries:
        if not each.is_from_chat:
            tables[table_of(each.level)].setdefault(each.id, {})[each.setting] = (
                [each.value] if each.setting == "triggers" else each.value
            )
    roles = list(tables["roles"])
    for platform in ("discord", "slack"):
        tables["platforms"].setdefault(platform, {})["models"] = MODELS
    rules = Rules()
    rules.reconfigure(Config(**tables))
    rules.replace_chat(
        [
            SettingChange(Scope(each.level, each.id), each.setting, each.value, None, MEI, NOON)
            for each in entries
            if each.is_from_chat
        ]
    )
    return rules, roles


def check(entries: list[Entry], message: IncomingMessage) -> None:
    rules, roles = rules_of(entries)
    persona, model = rules.persona(message), rules.model(message)
    outcomes: list[tuple[str, Any, Rule[Any]]] = [
        ("persona", persona.value.name, persona),
        ("model", model.value, model),
        *((name, rule.value, rule) for name in PLAIN for rule in [rules.plain(name, message)]),
    ]
    for setting, value, rule in outcomes:
        expected = reference(message, setting, entries, roles)
        if expected is None:
            assert (rule.scope, rule.is_from_chat) == (None, False)
            assert not value
        else:
            scope = Scope(expected.level, expected.id)
            written = ", ".join(value) if setting == "triggers" else str(value)
            assert (written, rule.scope, rule.is_from_chat) == (expected.value, scope, expected.is_from_chat)
    check_what_is_answered(rules, message, entries, roles)


def check_what_is_answered(rules: Rules, message: IncomingMessage, entries: list[Entry], roles: list[str]) -> None:
    words, all_or_not = (reference(message, setting, entries, roles) for setting in ("triggers", "answer"))
    is_all = all_or_not is not None and all_or_not.value == "all"
    who = reference(message, "who", [each for each in entries if not each.is_from_chat], roles)
    assert rules.who(message) == ("everyone" if who is None else who.value,)
    whose = reference(message, "history", entries, roles)
    assert rules.has_own_history(message) == (whose is not None and whose.value == "member")
    assert rules.may_answer(message.channel, message.server) == (is_all or words is not None)
    for word in OF_PLACES["triggers"]:
        is_expected = words is not None and words.value == word
        assert rules.is_triggered(message.channel, message.server, f"{word}, hello") == is_expected
    assert rules.answers_all(message.channel, message.server) == is_all


@settings(max_examples=300)
@given(SETS, messages())
def test_random_settings_have_the_outcome_of_the_reference(entries: list[Entry], message: IncomingMessage) -> None:
    check(entries, message)


HERE = Scope("channel", "discord:c1")


def chosen(setting: str, value: str | None, text: str | None = None) -> SettingChange:
    return SettingChange(HERE, setting, value, text, MEI, NOON)


def test_a_model_that_config_toml_does_not_name_for_the_place_is_not_in_force() -> None:
    rules = Rules()
    rules.replace_chat([chosen("model", "big")])
    tables: dict[str, Any] = {"models": {"big": {"model": "demo"}}}
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({}, None),
        ({"channels": {"discord:c1": {"models": ["engine"]}}}, None),
        ({"channels": {"discord:c1": {"models": ["engine"]}}, "platforms": {"discord": {"models": ["big"]}}}, None),
        ({"users": {"discord:1": {"models": ["big"]}}}, None),
        ({"platforms": {"discord": {"models": ["engine", "big"]}}}, "big"),
    ]
    for places, model in cases:
        rules.reconfigure(Config(**tables, **places))
        assert rules.model(a_message()).value == model, places


def test_a_persona_that_config_toml_has_no_more_gives_way() -> None:
    rules = Rules()
    rules.replace_chat([chosen("persona", "pirate")])
    tables: dict[str, Any] = {"channels": {"discord:c1": {"persona": "poet"}}}
    poet, pirate = PersonaSection(system_prompt="You are a poet."), PersonaSection()
    rules.reconfigure(Config(**tables, personas={"poet": poet, "pirate": pirate}))
    assert rules.persona(a_message()).value == Persona("pirate", "")
    rules.reconfigure(Config(**tables, personas={"poet": poet}))
    assert rules.persona(a_message()).value == Persona("poet", "You are a poet.")


def test_the_chat_only_lowers_the_longest_answer() -> None:
    rules = Rules()
    rules.replace_chat([chosen("max_answer_tokens", "300")])
    here: dict[str, Any] = {"channels": {"discord:c1": {"max_answer_tokens": 200}}}
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 300),
        ({"limits": {"max_answer_tokens": 100}}, 100),
        ({"limits": {"max_answer_tokens": 900}}, 300),
        (here, 200),
        ({"limits": {"max_answer_tokens": 100}, **here}, 200),
    ]
    for tables, most in cases:
        rules.reconfigure(Config(**tables))
        assert rules.plain("max_answer_tokens", a_message()).value == most, tables


def test_a_setting_that_config_toml_locks_is_not_in_force() -> None:
    rules = Rules()
    rules.replace_chat(
        [chosen("temperature", "0.1"), chosen("persona", None, "You are a parrot."), chosen("language", "zh")]
    )
    rules.reconfigure(Config(platforms={"discord": PlaceSection(settings=("language",))}))
    message = a_message()
    assert (rules.plain("temperature", message).value, rules.persona(message).scope) == (None, None)
    assert rules.plain("language", message).value == "zh"


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_has_a_table(level: ScopeLevel) -> None:
    assert table_of(level) in Config.model_fields


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seen: list[None] = []

    @settings(max_examples=count, database=None, deadline=None, derandomize=False)
    @given(SETS, messages())
    def compare(entries: list[Entry], message: IncomingMessage) -> None:
        seen.append(None)
        check(entries, message)

    compare()
    sys.stdout.write(f"{len(seen)} random sets of settings, 0 with another outcome than the reference\n")
