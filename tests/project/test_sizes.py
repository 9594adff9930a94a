"""Limits on the path of a message and on the layout of bot/."""

from pathlib import Path

from tests.project.sizes import class_names, kept_beside_the_owner, keyed_by_exchange, top_of
from tests.project.warm_path import traced

BOT = Path(__file__).parents[2] / "bot"


async def test_a_warm_message_makes_five_store_calls() -> None:
    trace = await traced("echo")

    assert trace.store_calls.total() <= 5, trace.store_calls
    assert 0 < len(trace.deepest) <= 3, trace.deepest
    assert "chat/intake.py" in trace.files


def test_the_top_of_bot_has_at_most_seven_modules() -> None:
    modules, _ = top_of(BOT)

    assert len(modules) <= 7


def test_containers_keyed_by_an_exchange_are_found() -> None:
    assert keyed_by_exchange("if exchange.id in self._owed: self._tasks.pop(exchange.id)") == {"_owed", "_tasks"}
    assert keyed_by_exchange("self._titles[message.id]; titles[exchange.id]") == set()


def test_containers_keyed_by_an_exchange_belong_to_their_registry() -> None:
    assert kept_beside_the_owner(BOT) == {}


def test_class_names_with_two_meanings_are_found(tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text("class Step: ...\nclass _Private: ...\n", encoding="utf-8")

    assert class_names(tmp_path) == {"Step": ["one.py", "two.py"]}


def test_class_names_of_bot_have_one_meaning() -> None:
    assert class_names(BOT) == {}
