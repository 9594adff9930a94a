"""A model in a loop is ended, and its next prompt has one round of it."""

import random
from itertools import repeat

import pytest

from bot.chat.loops import REPEATS, loop_at_end, without_loop
from tests.harness.harness import Harness, notice_of, text_of
from tests.harness.messages import a_message

CYCLES = [
    "是的。",
    "No, no. ",
    "I am sorry, but I cannot help with that.\n\n",
    "长" * 30 + "句子里有很多字，" * 3 + "。",
]


@pytest.mark.parametrize("cycle", CYCLES)
async def test_a_loop_is_ended_with_a_sentence(harness: Harness, cycle: str) -> None:
    harness.engine.add([*repeat(cycle, 4000)])
    events = await harness.ask(a_message("tell me"))
    assert text_of(events) == cycle * (len(text_of(events)) // len(cycle))
    assert REPEATS <= len(text_of(events)) // len(cycle) <= REPEATS + 12
    assert "repeated itself" in notice_of(events)
    await harness.ask(a_message("go on"))
    [_, answer, _] = harness.engine.requests[-1].messages
    assert answer.content == cycle


@pytest.mark.parametrize("cycle", CYCLES)
@pytest.mark.parametrize("has_notice", [True, False])
async def test_a_quotation_of_a_loop_is_short_too(harness: Harness, cycle: str, has_notice: bool) -> None:
    harness.engine.add(["Listen: ", *repeat(cycle, 4000)])
    looped = a_message("tell me")
    events = await harness.ask(looped)
    shown = "\n\n".join([text_of(events).rstrip(), *([notice_of(events)] if has_notice else [])])
    for number in range(2):
        await harness.ask(a_message(f"go on {number}"))
    await harness.ask(a_message("what is that?", quoted=shown, quoted_id="7", quotes_bot=True))
    asked = harness.engine.requests[-1].messages[-1].content
    assert 1 <= asked.count(cycle.strip()) <= 2, "a round, and the rest of one that was cut"
    assert ("repeated itself" in asked) is has_notice
    await harness.ask(a_message("and that?", quoted=shown, quoted_id="8"))
    assert len(harness.engine.requests[-1].messages[-1].content) > len(shown), "what people say is left as it is"


async def test_a_loop_is_noticed_however_its_text_is_cut(harness: Harness) -> None:
    chance, whole = random.Random(4), "First words. " + CYCLES[2] * 400
    cuts = sorted(chance.sample(range(len(whole)), 3000))
    harness.engine.add([whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)])
    text = text_of(await harness.ask(a_message("tell me")))
    assert len(text) < len(CYCLES[2]) * (REPEATS + 2)
    assert without_loop(text).count("I am sorry") <= 2


@pytest.mark.parametrize(
    "text",
    [
        "| a | b |\n" + "|---|---|---|---|---|---|---|---|---|---|---|\n",
        "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]",
        "=" * 200,
        " " * 100,
        "".join(f"{number}. item\n" for number in range(100)),
        "la la la la la la la",
        "x = 1\n" * (REPEATS - 1),
    ],
)
async def test_repetitions_below_the_limit_are_shown_to_their_end(harness: Harness, text: str) -> None:
    harness.engine.add([*text])
    events = await harness.ask(a_message("tell me"))
    assert (text_of(events), notice_of(events)) == (text, "")


async def test_what_the_question_repeats_may_be_repeated(harness: Harness) -> None:
    harness.engine.add([*repeat("Hurrah! ", 30)])
    events = await harness.ask(a_message("write this more often: Hurrah! Hurrah! Hurrah!"))
    assert (text_of(events), notice_of(events)) == ("Hurrah! " * 30, "")


def test_a_zero_that_goes_on_is_a_loop() -> None:
    assert loop_at_end("0, " * 64) == 3
    assert without_loop("[" + "0, " * 70) == "[0, "
