"""Print the votes on answers: sums by model and persona, and the answers of people who agreed."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from sqlalchemy import case, func, literal, select

from bot.config.schema import DEFAULT_MODEL
from bot.domain import NO_PERSONA, Vote
from bot.storage.export import open_snapshot, readable, reading_vault
from bot.storage.master_key import NO_MASTER_KEY, MasterKeys
from bot.storage.schema import SafeText, consents, exchanges, feedback

_HEAD = ("model", "persona", "up", "down")
# Columns before those of numbers.
WORDS = 2

_COUNTS = [func.sum(case((feedback.c.vote == vote, 1), else_=0)).label(vote.value) for vote in Vote]
_HAS_VOTES = select(feedback.c.exchange).where(feedback.c.exchange == exchanges.c.id).exists()
_ASKER = exchanges.c.author_platform.concat(literal(":", SafeText)).concat(exchanges.c.author)


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """An answer with the numbers of its votes, as it is exported: without names, ids and places."""

    question: str
    answer: str
    up: int
    down: int
    model: str
    persona: str


def vote_sums(url: str) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a table with its head, by model and persona.

    Raises:
        StoreError: The database cannot be read.
    """
    names = exchanges.c.model, exchanges.c.persona
    sums = select(*names, *_COUNTS).join(feedback, feedback.c.exchange == exchanges.c.id).group_by(*names)
    with open_snapshot(url) as connection:
        yield _HEAD
        rows = [
            (row.model or DEFAULT_MODEL, row.persona or NO_PERSONA, str(row.up), str(row.down))
            for row in connection.execute(sums)
        ]
        yield from sorted(rows)


def rated_answers(url: str, master: MasterKeys = NO_MASTER_KEY) -> Iterator[RatedAnswer]:
    """Yield the answers with votes whose askers agreed, oldest first.

    Raises:
        StoreError: The database cannot be read.
    """
    agreed = _HAS_VOTES & _ASKER.in_(select(consents.c.person))
    with open_snapshot(url) as connection, reading_vault(url, connection, master) as vault:
        for exchange in readable(connection, vault, agreed):
            if (answer := exchange.answer) is not None:
                row = connection.execute(select(*_COUNTS).where(feedback.c.exchange == exchange.id)).one()
                names = answer.model or DEFAULT_MODEL, answer.persona or NO_PERSONA
                yield RatedAnswer(exchange.message.whole.text, answer.text, row.up, row.down, *names)


def json_lines(answers: Iterable[RatedAnswer]) -> Iterator[str]:
    for each in answers:
        yield json.dumps(asdict(each), ensure_ascii=False)


def training_lines(answers: Iterable[RatedAnswer]) -> Iterator[str]:
    """Yield lines for `bot tune train`: answers with more votes for them than against."""
    for each in answers:
        if each.up > each.down:
            yield json.dumps({"prompt": each.question, "response": each.answer}, ensure_ascii=False)
