"""A few cases of `make lossless`, and its counting: what arrives, not how soon."""

import random

import pytest

from bot.delivery.markdown.blocks import visible_text
from bot.delivery.markdown.format import MarkdownFormat
from bot.delivery.markdown.split import join, split
from tests.adapters.demo import play
from tests.adapters.lossless import Report, report_delivered, table
from tests.adapters.lossless_cases import LONGEST, cases
from tests.adapters.lossless_runs import NOT_EXACT, Delivered, Refusals, ages, cut_like, deliver, load, placeholders
from tests.harness.platform import Seen
from tests.harness.platform_bench import PROFILES

every_platform = pytest.mark.parametrize("platform", PROFILES)


def test_an_answer_depends_on_its_number_and_the_seed_alone() -> None:
    many, one = cases(range(9), 4), cases([7], 4)
    assert many[7:8] == one
    assert cases([7], 5) != one


def test_answers_are_of_all_lengths_and_come_in_pieces() -> None:
    answers = cases(range(24), 4)
    lengths = [len(case.answer) for case in answers]
    assert min(lengths) < 100
    assert max(lengths) == LONGEST
    assert all("".join(case.deltas) == case.answer and visible_text(case.answer) for case in answers)


@every_platform
async def test_while_every_fourth_call_is_refused_every_character_arrives_once(platform: str) -> None:
    delivered = await deliver(platform, cases(range(4), 11), seed=11)
    assert delivered.faults == {}
    assert delivered.violations == []
    assert delivered.refusals.refused.total() == delivered.refusals.calls // 4 > 0


@every_platform
async def test_who_is_kept_waiting_sees_the_text_grow(platform: str) -> None:
    assert len((await placeholders(platform, 3)).values) == 3
    assert len((await ages(platform, 1, deltas=40, factor=50)).values) == 40


@every_platform
async def test_all_who_ask_at_once_are_answered_once(platform: str) -> None:
    measured = await load(platform, mentions=12, channels=4, sentences=5, idle_seconds=0.05, factor=50)
    assert measured.faults == ()


def test_messages_that_are_cut_elsewhere_are_known_to_be_the_answer_and_others_not() -> None:
    code = "".join(f"line_{number} = '值'\n" for number in range(120))
    answer = f"First **this**.\n\n```py\n{code}```\n\nThen that."
    pieces = split(answer, MarkdownFormat(500))
    parts = [Seen(str(number), "bot", piece.text, visible_text(piece.text)) for number, piece in enumerate(pieces)]
    assert join(cut_like(parts, answer, PROFILES["discord"])) == answer
    assert join(cut_like(parts[:-1], answer, PROFILES["discord"])) != answer
    assert join(cut_like([*parts[:2], *parts[3:]], answer, PROFILES["discord"])) != answer
    assert join(cut_like([parts[0], *parts], answer, PROFILES["discord"])) != answer


def test_what_went_wrong_is_told_with_the_command_that_repeats_it() -> None:
    report = Report("slack")
    report_delivered(
        report, Delivered(Refusals(random.Random(4)), cases=3, faults={2: [f"{NOT_EXACT} one too few"]}), 4
    )
    (failure,) = report.failures
    assert "one too few" in failure
    assert "python -m tests.adapters.lossless slack --seed 4 --case 2" in failure
    assert report.passed == 2 + 3
    assert "| every character exactly once | 2 of 3 |" in table([report])


@every_platform
async def test_the_demo_plays_to_its_end(platform: str) -> None:
    lines: list[str] = []
    await play(platform, lines.append)
    told = "\n".join(lines)
    assert "(stopped)" in told
    assert "Forgotten" in told
    assert "red panda" in told.partition("what stands there in the end")[2]
    assert "not allowed" not in told
