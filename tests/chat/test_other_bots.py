"""What another bot on the same database has changed, where several share the platforms."""

from dataclasses import replace
from datetime import timedelta

import pytest

from bot.chat.intake import Intake
from bot.chat.settings import ChatSettings
from bot.domain import ChannelKey, Scope
from tests.harness.harness import Harness
from tests.harness.messages import MEI, NOON, a_message

HERE = ChannelKey("slack", "C01", "1718.2")
PLACE = Scope("channel", "slack:C01")


def another(harness: Harness) -> Intake:
    """Return the chat of another bot on the database."""
    return Intake(harness.access, harness.engine, harness.store, ChatSettings(), today=lambda: NOON)


async def test_a_setting_that_another_bot_has_changed_is_followed(harness: Harness) -> None:
    other = another(harness)
    await other.choices.load()
    await harness.intake.choices.set(PLACE, "answer", MEI, "all")
    assert not other.settings.rules.answers_all(HERE, None)
    await other.choices.follow()
    assert other.settings.rules.answers_all(HERE, None)
    revision = other.choices.revision
    await other.choices.follow()
    assert other.choices.revision == revision, "nothing has changed since"


async def test_settings_are_read_again_when_a_platform_is_taken_over(harness: Harness) -> None:
    other = another(harness)
    await other.choices.load()
    await harness.intake.choices.set(PLACE, "answer", MEI, "all")
    other.forget_before()
    await other.choices.load()
    assert other.settings.rules.answers_all(HERE, None)


@pytest.mark.parametrize("is_told", [True, False])
async def test_after_a_takeover_a_paste_goes_on_with_a_stored_question(harness: Harness, is_told: bool) -> None:
    hour = timedelta(hours=1)
    facts = harness.access, harness.engine, harness.store, ChatSettings()
    other = Intake(*facts, clock=harness.clock, today=lambda: NOON - hour + timedelta(seconds=harness.clock.now()))
    for intake in (harness.intake, other):
        intake.continuations.longest["discord"] = 20
    first, last = (replace(a_message(text, id=text[0]), sent_at=NOON) for text in ("a" * 20, "the end"))
    question = await harness.intake.accept(first)
    assert question is not None
    harness.intake.exchanges.release(question)
    await harness.clock.advance(hour.total_seconds())
    if is_told:
        other.forget_before()
    found = await other.accept(last)
    assert found is not None
    assert (found.id == question.id) is is_told
