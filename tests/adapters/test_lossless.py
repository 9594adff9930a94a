"""A few cases of `make lossless` and of the demo, without time limits."""

import random

import pytest

from bot.delivery.markdown.blocks import visible_text
from bot.delivery.markdown.format import MarkdownFormat
from bot.delivery.markdown.split import join, split
from tests.adapters.demo import THOUGHT, play, play_remote
from tests.adapters.lossless import Report, report_delivered, table
from tests.adapters.lossless_cases import LONGEST, cases
from tests.adapters.lossless_runs import (
    NOT_EXACT,
    Delivered,
    InjectedFaults,
    ages,
    cut_like,
    deliver,
    load,
    placeholders,
)
from tests.harness.platform import Seen
from tests.harness.platform_bench import FORMS, PROFILES

every_platform = pytest.mark.parametrize("platform", PROFILES)


def test_a_case_depends_only_on_its_number_and_the_seed() -> None:
    many, one = cases(range(9), 4), cases([7], 4)
    assert many[7:8] == one
    assert cases([7], 5) != one


def test_answers_have_all_lengths_and_several_deltas() -> None:
    answers = cases(range(24), 4)
    lengths = [len(case.answer) for case in answers]
    assert min(lengths) < 100
    assert max(lengths) == LONGEST
    assert all("".join(case.deltas) == case.answer and visible_text(case.answer) for case in answers)


@pytest.mark.parametrize("platform", PROFILES | FORMS)
async def test_every_character_arrives_once_although_every_fourth_call_fails(platform: str) -> None:
    delivered = await deliver(platform, cases(range(4), 11), seed=11)
    assert delivered.faults == {}
    assert delivered.violations == []
    assert delivered.injected.failed.total() == delivered.injected.calls // 4 > 0


@every_platform
async def test_placeholders_and_ages_are_measured(platform: str) -> None:
    assert len((await placeholders(platform, 3)).values) == 3
    assert len((await ages(platform, 1, deltas=40, factor=50)).values) == 40


@every_platform
async def test_concurrent_mentions_are_each_answered_once(platform: str) -> None:
    measured = await load(platform, mentions=12, channels=4, sentences=5, idle_seconds=0.05, factor=50)
    assert measured.faults == ()


def test_cut_like_accepts_other_splits_of_the_answer_and_no_other_messages() -> None:
    code = "".join(f"line_{number} = '值'\n" for number in range(120))
    answer = f"First **this**.\n\n```py\n{code}```\n\nThen that."
    pieces = split(answer, MarkdownFormat(500))
    parts = [Seen(str(number), "bot", piece.text, visible_text(piece.text)) for number, piece in enumerate(pieces)]
    assert join(cut_like(parts, answer, PROFILES["discord"])) == answer
    assert join(cut_like(parts[:-1], answer, PROFILES["discord"])) != answer
    assert join(cut_like([*parts[:2], *parts[3:]], answer, PROFILES["discord"])) != answer
    assert join(cut_like([parts[0], *parts], answer, PROFILES["discord"])) != answer


def test_a_failure_is_reported_with_the_command_that_repeats_it() -> None:
    report = Report("slack")
    report_delivered(
        report, Delivered(InjectedFaults(random.Random(4)), cases=3, faults={2: [f"{NOT_EXACT} one too few"]}), 4
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
    transcript = "\n".join(lines)
    assert "(stopped)" in transcript
    assert "Deleted: " in transcript
    assert "red panda" in transcript.partition("the final messages")[2]
    assert "not allowed" not in transcript


@pytest.mark.parametrize("platform", ["discord"])
async def test_the_demo_is_the_same_with_a_model_server_that_is_killed_half_way(platform: str) -> None:
    transcripts: dict[bool, list[str]] = {True: [], False: []}
    for is_killed, lines in transcripts.items():
        await play_remote(platform, lines.append, is_killed=is_killed)
        assert not [line for line in lines if "not allowed" in line or THOUGHT[:12] in line]
        assert lines[-1] == f"— answers continued by the other server: {int(is_killed)}"
    killed, undisturbed = (lines[lines.index("— the final messages") : -1] for lines in transcripts.values())
    assert killed == undisturbed
    assert "its model server is killed" in "\n".join(transcripts[True])
