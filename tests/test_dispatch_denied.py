"""Whom [access] denies gets no reply of any kind, by whichever door they come in."""

from dataclasses import replace

import pytest

from bot.config import AccessSection, LimitsSection
from bot.dispatch import Pressed
from bot.domain import Action, Exchange, Status
from tests.house import House, notice_of
from tests.messages import CHANNEL, MEI, a_message

SERVER = "s1"
RULES = {
    "a denied person": AccessSection(deny_users=(MEI.key,)),
    "a denied channel": AccessSection(deny_channels=("discord:c1",)),
    "a denied server": AccessSection(deny_servers=("discord:s1",)),
    "others are allowed": AccessSection(allow_users=("discord:2",)),
    "a role that is gone": AccessSection(allow_roles=("discord:r1",)),
}
pytestmark = pytest.mark.parametrize("access", RULES.values(), ids=RULES)


async def answered(house: House) -> Exchange:
    exchange = await house.accept(a_message("question", server=SERVER))
    await house.dispatcher.placed(exchange.id, 0, "m1")
    await house.replied(exchange)
    return exchange


def deny(house: House, access: AccessSection) -> None:
    house.access.use(access, LimitsSection())


async def test_a_new_message_is_not_even_kept(house: House, access: AccessSection) -> None:
    deny(house, access)
    message = a_message("question", server=SERVER)
    assert await house.dispatcher.accept(message) is None
    await house.dispatcher.keep(message)
    assert await house.store.find(message.channel, message.id) is None


async def test_an_edit_of_an_old_question_is_not_answered(house: House, access: AccessSection) -> None:
    exchange = await answered(house)
    deny(house, access)
    assert await house.dispatcher.edited(replace(exchange.message, text="another question")) is None
    assert (await house.kept(exchange)).message.text == "question"


@pytest.mark.parametrize("action", Action)
async def test_a_button_does_nothing_and_says_nothing(house: House, access: AccessSection, action: Action) -> None:
    exchange = await answered(house)
    deny(house, access)
    assert await house.dispatcher.pressed(CHANNEL, "m1", action, MEI) == Pressed()
    assert (await house.kept(exchange)).status is Status.DELIVERED


async def test_what_was_kept_before_is_not_answered_afterwards(house: House, access: AccessSection) -> None:
    message = a_message("question", server=SERVER)
    await house.dispatcher.keep(message)
    deny(house, access)
    assert await house.dispatcher.owed("discord") == []
    house.access.use(AccessSection(), LimitsSection())
    assert await house.dispatcher.owed("discord") == []
    assert house.engine.requests == []


async def test_who_asked_to_be_forgotten_before_still_is(house: House, access: AccessSection) -> None:
    exchange = await answered(house)
    await house.dispatcher.keep(a_message("/forget me", server=SERVER))
    deny(house, access)
    (forget,) = await house.dispatcher.owed("discord")
    assert notice_of(await house.replied(forget))
    assert (await house.kept(exchange)).message.text == ""
