"""R26: questions edited and deleted at random moments while the bot's connection is cut, on Slack and Discord.

Every second cut loses the events until the next connection.  After each reconnection every
reply must answer the last text of its question, and no row may hold an older text or the
text of a deleted question; a further reconnection brings no such answer back.  Telegram
sends bots no deletions, and its history cannot be read.
"""

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from bot.domain import Action, ChatRequest
from bot.storage.schema import exchanges
from tests.adapters.lossless_runs import asked, flowing
from tests.chaos.figure import Row, Scale
from tests.chaos.gateway import Place, connections, today
from tests.chaos.processes import until
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.fakes.engine import AnswerScript
from tests.harness.platform_bench import Bench, open_bench
from tests.storage import decrypted_rows, url_of
from tests.storage.forensics import KeptFiles

NAME = "R26"

PLATFORMS = ("discord", "slack")
_CUTS: dict[Scale, int] = {"full": 150, "short": 4}
# Cuts on one workspace, whose history each reconnection reads.
_ROUND = 15
_FACTOR = 100.0
# Looks without any change, after which a fault is counted: 15 s, on a busy machine minutes.
_LOOKS = 500
_CONNECT = 600.0
# Seconds until the files are rewritten, which takes 2 % of the time at most.
_REWRITE = 180.0
_POLL = 0.03
# Questions of a round that may still be changed.
_LAST = 15
# A version of a question's text, and the answer to it.
_WORD = re.compile(r"\bq\d+v\d+e\b")
_ANSWER = re.compile(r"answer to (q\d+v\d+e)\.")


@dataclass(eq=False)
class Question:
    """A user's message; `text` is its last version."""

    number: int
    place: Place
    id: str = ""
    version: int = 0
    is_deleted: bool = False
    is_given_up: bool = False  # its fault is counted

    @property
    def text(self) -> str:
        return f"q{self.number}v{self.version}e"


@dataclass
class CutOffResult:
    """Counts after all cuts."""

    cuts: int = 0
    questions: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        changes = ", ".join(f"{kind} {self.changes[kind]}" for kind in sorted(self.changes))
        text = f"cuts {self.cuts}, questions {self.questions}, {changes}: not found or wrong {len(self.faults)}"
        return text + "".join(f"; {fault}" for fault in self.faults[:5])


class Round:
    """Users of one workspace, and what they have said, edited and deleted."""

    def __init__(self, bench: Bench, engine: ScriptedEngine, result: CutOffResult, chance: random.Random) -> None:
        self._bench = bench
        self._engine = engine
        self._platform: Any = bench.platform
        self._result = result
        self._chance = chance
        self.questions: list[Question] = []
        self._places = [Place("general"), Place("random"), Place("Mei", is_direct=True), Place("Ann", is_direct=True)]

    async def begin(self) -> None:
        """Mention the bot in each place: a backfill reads known places."""
        roots = [await self.ask(place) for place in self._places]
        name = roots[0].id if self._platform.name == "slack" else "a thread"
        self._places.append(Place("general", thread=name))
        await self.ask(self._places[-1])
        await self.settle("before the cuts")

    async def ask(self, place: Place) -> Question:
        question = Question(self._result.questions, place)
        if place.is_direct:
            question.id = await self._platform.say(question.text, author=place.channel, direct=True)
        else:
            question.id = await self._platform.say(question.text, channel=place.channel, thread=place.thread)
        self.questions.append(question)
        self._result.questions += 1
        return question

    async def change(self, kind: str) -> None:
        """Ask, edit or delete at random."""
        draw = self._chance.random()
        # The first message of a thread is kept: Slack shows it as deleted, and others go on below it.
        old = [each for each in self.questions[len(self._places) :][-_LAST:] if not each.is_deleted]
        if draw < 0.35 or not old:
            await self.ask(self._chance.choice(self._places))
            return
        question = self._chance.choice(old)
        if draw < 0.75:
            question.version += 1
            await self._platform.edit(question.id, question.text)
            self._result.changes[f"edited {kind}"] += 1
        else:
            question.is_deleted = True
            await self._platform.delete(question.id)
            self._result.changes[f"deleted {kind}"] += 1

    async def cut(self, *, is_resumable: bool) -> None:
        """Cut the connection, and change questions before, meanwhile and after."""
        for _ in range(self._chance.randrange(3)):
            await self.change("before")
            await self._spin()
        before = connections(self._platform)
        dropping = asyncio.create_task(self._platform.disconnect(resumable=is_resumable))
        await self._spin()
        for _ in range(self._chance.randrange(1, 5)):
            await self.change("meanwhile")
            await self._spin()
        await dropping
        self._result.cuts += 1
        if self._chance.random() < 0.5:  # else the next changes come while it connects
            is_back = self._bench.profile.is_connected
            await self._platform.until(
                lambda: connections(self._platform) > before and is_back(self._platform), _CONNECT
            )
        for _ in range(self._chance.randrange(3)):
            await self.change("after")
            await asyncio.sleep(self._chance.uniform(0.0, 0.05))

    async def settle(self, when: str) -> None:
        """Wait until everything is found; what is not is counted, once."""
        seen: object = None
        looks = 0
        while faults := self._faults():
            state = (self._shown(), self._rows())
            looks = looks + 1 if state == seen else 0
            seen = state
            if looks == _LOOKS:
                for question, fault in faults.items():
                    question.is_given_up = True
                    self._result.faults.append(f"{question.text} in {question.place}, {when}: {fault}")
                return
            await asyncio.sleep(_POLL)

    async def end(self) -> None:
        """Reconnect once more: what was deleted must not be answered again; nor may any file have it."""
        await self.settle("at the end")
        shown, read_before = self._deleted_answers(), len(self._engine.requests)
        await self._platform.disconnect(resumable=False)
        for place in self._places:
            await self.ask(place)
        await self.settle("after one more reconnection")
        gone = {word for question in self.questions if question.is_deleted for word in _words(question)}
        again = [word for request in self._engine.requests[read_before:] for word in _read(request) if word in gone]
        again += [f"{id} {text}" for id, text in self._deleted_answers().items() if shown.get(id) != text]
        self._result.faults += [f"{word} was read or shown again" for word in dict.fromkeys(again)]
        with suppress(TimeoutError):
            await until(lambda: not self._in_files(gone), _REWRITE)
        self._result.faults += [f"{word} is in the files" for word in self._in_files(gone)]
        # Slack redelivers events that arrive during a backfill, here for a short time only.
        self._result.faults += [each for each in self._platform.violations if "never acknowledged" not in each]

    async def _spin(self) -> None:
        """Let the bot reach a random point: received, stored, answering."""
        for _ in range(self._chance.randrange(40)):
            await asyncio.sleep(0)
        if self._chance.random() < 0.2:
            await asyncio.sleep(self._chance.uniform(0.0, 0.02))

    def _faults(self) -> dict[Question, str]:
        """Return what is not as it must be, by question."""
        rows, answers = self._rows(), Counter(word for text in self._shown().values() for word in _ANSWER.findall(text))
        final = {
            word
            for seen in self._seen()
            if seen.author == "bot" and Action.RETRY in seen.actions
            for word in _ANSWER.findall(seen.markdown)
        }
        faults = {}
        for question in self.questions:
            if question.is_given_up:
                continue
            old = [word for word in _words(question) if word in rows and (question.is_deleted or word != question.text)]
            shown = {word: answers[word] for word in _words(question) if answers[word]}
            if old:
                faults[question] = f"{' '.join(old)} is in the database"
            elif not question.is_deleted and (shown != {question.text: 1} or question.text not in final):
                faults[question] = f"answers {shown}"
        return faults

    def _rows(self) -> frozenset[str]:
        """Return all versions that the database holds."""
        rows = decrypted_rows(url_of(self._bench.database), exchanges)
        texts = [row[name] or "" for row in rows for name in ("text", "answer", "quoted", "notice")]
        return frozenset(word for text in texts for word in _WORD.findall(text))

    def _in_files(self, words: set[str]) -> list[str]:
        kept = KeptFiles(self._bench.database.parent)
        kept.copy()
        content = kept.decrypted()
        return sorted(word for word in words if re.search(rb"\b" + word.encode() + rb"\b", content))

    def _seen(self) -> list[Any]:
        return [seen for place in self._places for seen in self._platform.seen(place.channel, place.thread)]

    def _shown(self) -> dict[str, str]:
        """Return the bot's messages by id."""
        return {seen.id: seen.markdown for seen in self._seen() if seen.author == "bot"}

    def _deleted_answers(self) -> dict[str, str]:
        gone = {word for question in self.questions if question.is_deleted for word in _words(question)}
        return {id: text for id, text in self._shown().items() if gone.intersection(_WORD.findall(text))}


def _words(question: Question) -> list[str]:
    """Return all versions of its text."""
    return [f"q{question.number}v{version}e" for version in range(question.version + 1)]


def _read(request: ChatRequest) -> list[str]:
    return [word for message in request.messages for word in _WORD.findall(message.content)]


async def cut_off(name: str, cuts: int, seed: int) -> CutOffResult:
    """Cut the connection this often, in rounds on a workspace each."""
    result, chance = CutOffResult(), random.Random(f"{seed} {name}")
    while result.cuts < cuts:
        engine = ScriptedEngine(default=_answer, context_length=1_000_000, max_batch_size=64, max_waiting=10_000)
        async with open_bench(name, engine, FastClock(_FACTOR), around=today) as bench:
            users = Round(bench, engine, result, chance)
            await users.begin()
            for number in range(min(_ROUND, cuts - result.cuts)):
                await users.cut(is_resumable=number % 2 == 0)
                if chance.random() < 0.7:  # else the next cut comes during the backfill
                    await users.settle(f"cut {result.cuts}")
            await users.end()
    return result


def _answer(request: ChatRequest) -> AnswerScript:
    return flowing(["answer to ", asked(request), "."], 0.005)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PLATFORMS:
        result = await cut_off(name, _CUTS[scale], seed)
        yield Row(name, str(result), not result.faults)
