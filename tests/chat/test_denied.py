"""Denied users get no reply to messages, edits, buttons or backlog."""

from dataclasses import replace

import pytest

from bot.chat.intake import ButtonResult
from bot.config.schema import AccessSection, LimitsSection
from bot.domain import Action, Exchange, Status
from tests.harness.harness import Harness, notice_of
from tests.harness.messages import CHANNEL, MEI, a_message

SERVER = "s1"
RULES = {
    "a denied person": AccessSection(deny_users=(MEI.key,)),
    "a denied channel": AccessSection(deny_channels=("discord:c1",)),
    "a denied server": AccessSection(deny_servers=("discord:s1",)),
    "others are allowed": AccessSection(allow_users=("discord:2",)),
    "a role that is gone": AccessSection(allow_roles=("discord:r1",)),
}
pytestmark = pytest.mark.parametrize("access", RULES.values(), ids=RULES)


async def answered(harness: Harness) -> Exchange:
    exchange = await harness.accept(a_message("question", server=SERVER))
    await harness.record_part(exchange, 0, "m1")
    await harness.replied(exchange)
    return exchange


def deny(harness: Harness, access: AccessSection) -> None:
    harness.access.reconfigure(access, LimitsSection())


async def test_a_new_message_of_a_denied_user_is_not_stored(harness: Harness, access: AccessSection) -> None:
    deny(harness, access)
    message = a_message("question", server=SERVER)
    assert await harness.intake.accept(message) is None
    await harness.intake.store(message)
    assert await harness.store.find(message.channel, message.id) is None


async def test_an_edit_of_an_old_question_is_not_answered_and_takes_the_old_text_away(
    harness: Harness, access: AccessSection
) -> None:
    exchange = await answered(harness)
    deny(harness, access)
    assert await harness.intake.edit(replace(exchange.message, text="another question")) is None
    assert (await harness.stored(exchange)).message.text == ""


@pytest.mark.parametrize("action", Action)
async def test_a_button_does_nothing_and_says_nothing(harness: Harness, access: AccessSection, action: Action) -> None:
    exchange = await answered(harness)
    deny(harness, access)
    assert await harness.intake.on_button(CHANNEL, "m1", action, MEI) == ButtonResult()
    assert (await harness.stored(exchange)).status is Status.DELIVERED


async def test_messages_stored_before_the_denial_are_not_answered(harness: Harness, access: AccessSection) -> None:
    message = a_message("question", server=SERVER)
    await harness.intake.store(message)
    deny(harness, access)
    assert await harness.intake.recover("discord") == []
    harness.access.reconfigure(AccessSection(), LimitsSection())
    assert await harness.intake.recover("discord") == []
    assert harness.engine.requests == []


async def test_a_forget_request_from_before_the_denial_is_carried_out(harness: Harness, access: AccessSection) -> None:
    exchange = await answered(harness)
    await harness.intake.store(a_message("/forget me", server=SERVER))
    deny(harness, access)
    (forget,) = await harness.intake.recover("discord")
    assert notice_of(await harness.replied(forget))
    assert (await harness.stored(exchange)).message.text == ""
