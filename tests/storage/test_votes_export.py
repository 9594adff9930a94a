"""What is printed of the votes: sums of all, questions and answers of those who agreed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bot.cli import cli
from bot.domain import Answer, Author, Vote, VoteResult
from bot.engine.tuning.data import Columns, Pair, read_data
from bot.storage.copy import copy_database
from bot.storage.schema import feedback
from bot.storage.sql import SqlStore
from bot.storage.votes_export import RatedAnswer, rated_answers, vote_sums
from tests.contracts.test_store import begun
from tests.harness.fakes.clock import JumpingClock
from tests.harness.postgres import PostgresServer
from tests.storage import BEN, MEI, NOON, decrypted_rows, message, temporary_store, url_of

ADA = Author("slack", "U3", "Ada")


async def ask(store: SqlStore, number: int, author: Author, answer: Answer, **votes: Vote) -> None:
    """Store a question with its answer, and the votes of people by name."""
    exchange = await begun(store, message(number, f"question {number}", author=author))
    await store.record_answer(exchange, answer)
    await store.complete(exchange)
    people = {"mei": MEI, "ben": BEN, "ada": ADA}
    for name, vote in votes.items():
        assert await store.vote(exchange, people[name], vote, NOON) is VoteResult(vote)


async def fill(store: SqlStore) -> None:
    await store.record_consent(MEI, NOON)
    await ask(store, 1, MEI, Answer("good"), mei=Vote.UP, ben=Vote.UP, ada=Vote.DOWN)
    await ask(store, 2, MEI, Answer("bad", model="big", persona="pirate"), ben=Vote.DOWN)
    await ask(store, 3, BEN, Answer("of somebody who has not agreed"), mei=Vote.UP)
    await ask(store, 4, MEI, Answer("that nobody has an opinion of"))


async def test_the_sums_are_those_of_all_people_by_model_and_persona(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await fill(store)
    assert list(vote_sums(url_of(tmp_path / "bot.db"))) == [
        ("model", "persona", "up", "down"),
        ("big", "pirate", "0", "1"),
        ("engine", "-", "3", "1"),
    ]


async def test_only_answers_whose_askers_agreed_are_exported(tmp_path: Path) -> None:
    url = url_of(tmp_path / "bot.db")
    async with temporary_store(tmp_path) as store:
        await fill(store)
        assert list(rated_answers(url)) == [
            RatedAnswer("question 1", "good", 2, 1, "engine", "-"),
            RatedAnswer("question 2", "bad", 0, 1, "big", "pirate"),
        ]
        await store.record_consent(MEI, None)
        assert list(rated_answers(url)) == []
        await store.record_consent(BEN, NOON)
        assert [each.answer for each in rated_answers(url)] == ["of somebody who has not agreed"]
        await store.forget(BEN)
        assert list(rated_answers(url)) == []


@pytest.mark.parametrize("is_server", [False, True])
async def test_a_copy_has_the_votes_and_consents_and_knows_whose_they_are(
    is_server: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source, target = url_of(tmp_path / "bot.db"), url_of(tmp_path / "copy" / "bot.db")
    if is_server:
        server: PostgresServer = request.getfixturevalue("postgres")
        target = server.url(server.database())
    async with temporary_store(tmp_path) as store:
        await fill(store)
    copy_database(source, target)
    assert list(vote_sums(target)) == list(vote_sums(source))
    assert list(rated_answers(target)) == list(rated_answers(source))
    async with SqlStore(target, JumpingClock()) as store:
        exchange = await store.find(message(1).channel, "1")
        assert exchange is not None
        assert await store.vote(exchange, BEN, Vote.UP, NOON) is VoteResult.TAKEN_BACK
        assert await store.vote(exchange, ADA, Vote.DOWN, NOON) is VoteResult.TAKEN_BACK, "also without a message"


async def test_no_row_of_a_vote_has_the_id_or_the_name_of_its_person(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await ask(store, 1, MEI, Answer("good"), ada=Vote.UP)
    [row] = decrypted_rows(url_of(tmp_path / "bot.db"), feedback)
    assert ADA.name not in str(row)
    assert ADA.id not in str(row)


def run(folder: Path, *args: str, export: bool = True) -> Result:
    config = folder / "config.toml"
    setting = f"[storage]\nurl = {json.dumps(url_of(folder / 'bot.db'))}\n[feedback]\nexport = {str(export).lower()}\n"
    config.write_text(setting, encoding="utf-8")
    return CliRunner().invoke(cli, [*args, "--config", str(config)])


async def test_the_command_prints_sums_and_writes_data_that_can_be_trained_on(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await fill(store)
    assert run(tmp_path, "feedback").stdout.splitlines() == [
        "model   persona  up  down",
        "big     pirate    0     1",
        "engine  -         3     1",
    ]
    assert run(tmp_path, "feedback", "--csv").stdout.splitlines()[1:] == ["big,pirate,0,1", "engine,-,3,1"]
    lines = [json.loads(line) for line in run(tmp_path, "feedback", "--jsonl").stdout.splitlines()]
    assert [(each["question"], each["up"], each["down"]) for each in lines] == [
        ("question 1", 2, 1),
        ("question 2", 0, 1),
    ]
    data = tmp_path / "train.jsonl"
    assert run(tmp_path, "tune", "data", str(data)).stdout == f"1 answers written to {data}.\n"
    assert read_data([data], Columns()).pairs == (Pair("question 1", "good"),)
    assert data.stat().st_mode & 0o777 == 0o600
    again = run(tmp_path, "tune", "data", str(data))
    assert (again.exit_code, "File exists" in again.output) == (2, True)


@pytest.mark.parametrize("args", [("feedback", "--jsonl"), ("tune", "data", "train.jsonl")])
def test_nothing_is_exported_unless_the_operator_has_switched_it_on(args: tuple[str, ...], tmp_path: Path) -> None:
    refused = run(tmp_path, *args, export=False)
    assert (refused.exit_code, "feedback.export is off" in refused.output) == (2, True)
