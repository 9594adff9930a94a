"""R16: people on two platforms whose ids all look alike, who edit, delete, clear and ask to be forgotten.

A hypothesis state machine over the real store, intake and conversations.  Every message
has a secret word; the engine looks at each prompt that it gets.  No prompt and no reply may
hold a word of another conversation, nor one that was deleted before the prompt was made, and
in the end no byte of a deleted word may be in the database's files.
"""

import asyncio
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from inspect import getcoroutinelocals
from pathlib import Path
from types import CoroutineType, TracebackType
from typing import Any, ClassVar, Self

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from bot.config.schema import ConversationSection
from bot.domain import (
    Action,
    Author,
    ChannelKey,
    ChatMessage,
    ChatRequest,
    Delta,
    EngineEvent,
    EngineInfo,
    EngineLoad,
    Exchange,
    Finished,
    FinishReason,
    IncomingMessage,
    Kind,
    Notice,
    Usage,
)
from bot.errors import ClaimLost, StoreError
from tests.chaos.figure import Row, Scale
from tests.harness.harness import NO_LIMITS, Harness, make_harness
from tests.harness.messages import NOON

NAME = "R16"

STEPS = 22  # of an example; a thousand of these take four minutes on two busy cores
PLATFORMS = ("p", "q")
# The same text is a channel here, a thread there and a message elsewhere; joined with ":" or "/" some are equal.
# Only spaces are spared: no platform's id has one.
IDS = ("x", "y", "x/y", "x:y", "X")
SECRET = re.compile(r"w\d+e")

channels = st.builds(
    ChannelKey, st.sampled_from(PLATFORMS), st.sampled_from(("x", "x/y")), st.sampled_from((None, "x", "x:y"))
)
names = st.sampled_from(IDS)
messages = st.sampled_from((*IDS, *(f"{id}/{number}" for id in IDS for number in range(8))))
persons = st.sampled_from(("1", "2"))


@dataclass(eq=False)
class Word:
    """A secret, and the message that it stands in."""

    text: str
    exchange: int
    key: tuple[str, str, str]  # platform, channel, message
    home: ChannelKey
    author: str
    quotes: "Word | None" = None
    is_gone: bool = False  # no later prompt may hold it
    is_erased: bool = False  # nor a byte of the files


class Witness:
    """An engine that reads every prompt, and answers with the secret that it was asked with."""

    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        self.held: list[asyncio.Event] = []
        self.is_open = False

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("witness", "witness", "none", "none", "none", context_length=100_000)

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(running=0, waiting=0)

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        return len(messages)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        own = self._machine.judge(request)
        yield Delta(f"half an answer to {own}, ")
        if not self.is_open:
            go_on = asyncio.Event()
            self.held.append(go_on)
            await go_on.wait()
        yield Delta("and the rest")
        yield Finished(FinishReason.STOP, Usage(1, 1))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to free."""


class Machine(RuleBasedStateMachine):
    counted: ClassVar[Counter[str]] = Counter()
    # Kept here: of a race that another run wins, hypothesis only says that the runs are not alike.
    failures: ClassVar[list[tuple[BaseException, list[str]]]] = []

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.runner = asyncio.Runner()
        self.words: dict[str, Word] = {}
        self.by_key: dict[tuple[str, str, str], Word] = {}
        self.placed: dict[tuple[str, str], list[str]] = {}
        self.violations: list[str] = []
        self.replies: set[asyncio.Task[None]] = set()
        self.minutes = 0
        self.steps: list[tuple[str, dict[str, Any]]] = []
        self.counted["examples"] += 1
        self.run(self._open())

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        assert isinstance(work, CoroutineType)
        given = {name: value for name, value in getcoroutinelocals(work).items() if value is not self}
        self.steps.append((work.__name__, given))
        error = self.runner.run(_failure(work))
        if error is None and self.violations:
            error = AssertionError("; ".join(self.violations))
        if error is not None:
            told = [f"{name}({', '.join(f'{k}={v!r}' for k, v in given.items())})" for name, given in self.steps]
            self.failures.append((error, told))
            raise error

    # What happens

    @rule(channel=channels, asked=st.lists(st.tuples(messages, persons, st.booleans()), min_size=1, max_size=5))
    def ask(self, channel: ChannelKey, asked: list[tuple[str, str, bool]]) -> None:
        for id, person, quote in asked:
            self.run(self._ask(channel, id, person, quote))

    @rule()
    def answer_all(self) -> None:
        self.run(self._finish())

    @rule(channel=channels, person=persons, hurry=st.booleans())
    def clear(self, channel: ChannelKey, person: str, hurry: bool) -> None:
        self.run(self._command("/clear", channel, person, lambda word: _is_within(word.home, channel), hurry=hurry))

    @rule(channel=channels, person=persons, hurry=st.booleans())
    def forget(self, channel: ChannelKey, person: str, hurry: bool) -> None:
        author = f"{channel.platform}:{person}"
        self.run(self._command("/forget me", channel, person, lambda word: word.author == author, hurry=hurry))

    @precondition(lambda self: self.words)
    @rule(data=st.data())
    def edit(self, data: st.DataObject) -> None:
        self.run(self._edit(self._some(data)))

    @precondition(lambda self: self.words)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.run(self._delete(self._some(data)))

    @precondition(lambda self: self.words)
    @rule(data=st.data(), action=st.sampled_from(Action))
    def press(self, data: st.DataObject, action: Action) -> None:
        self.run(self._press(self._some(data), action))

    @rule(channel=channels, person=persons)
    def retry(self, channel: ChannelKey, person: str) -> None:
        self.run(self._retry(channel, person))

    @rule(platform=st.sampled_from(PLATFORMS), channel=names, to=names)
    def move(self, platform: str, channel: str, to: str) -> None:
        if channel != to:
            self.run(self._move(ChannelKey(platform, channel), to))

    @rule(count=st.integers(1, 4))
    def go_on(self, count: int) -> None:
        self.run(self._go_on(count))

    @rule()
    def restart(self) -> None:
        self.run(self._restart())

    @rule()
    def expire(self) -> None:
        self.run(self._expire())

    def teardown(self) -> None:
        try:
            self.run(self._end())
        finally:
            self.runner.close()
            shutil.rmtree(self.folder)

    # How

    def judge(self, request: ChatRequest) -> str:
        """Note what this prompt should not hold; return the secret that it asks with."""
        self.counted["prompts"] += 1
        own = self.words[SECRET.findall(request.messages[-1].content)[-1]]
        for message in request.messages:
            *quoted, spoken = (self.words[text] for text in SECRET.findall(message.content))
            if spoken.home != own.home:
                self.violations.append(f"{spoken.text} of {spoken.home} is in a prompt of {own.home}")
            for word in (*quoted, spoken):
                self.counted["words read"] += 1
                if word.is_gone:
                    self.violations.append(f"{word.text} is in a later prompt")
                if word not in (spoken, spoken.quotes):
                    self.violations.append(f"{word.text} was not quoted by {spoken.text}")
        return own.text

    async def _open(self) -> None:
        self.engine = Witness(self)
        self.stack = AsyncExitStack()
        settings = ConversationSection(name_speakers=False)
        harness = make_harness(self.folder, self.engine, conversation=settings, limits=NO_LIMITS)  # type: ignore[arg-type]  # an Engine
        self.harness: Harness = await self.stack.enter_async_context(harness)

    async def _ask(self, channel: ChannelKey, id: str, person: str, quote: bool) -> None:
        key = (channel.platform, channel.channel, id)
        near = [
            word
            for word in self.words.values()
            if (word.home.platform, word.home.channel) == key[:2] and not word.is_gone
        ]
        quoted = near[-1] if quote and near else None
        secret = self._secret()
        message = self._message(channel, id, person, secret, quoted)
        exchange = await self.harness.intake.accept(message)
        if key in self.by_key:
            assert exchange is None, "a message that was known is answered again"
            return
        assert exchange is not None, f"a new message is taken for one that was known: {message}"
        word = Word(secret, exchange.id, key, channel, message.author.key, quoted)
        self.words[secret] = self.by_key[key] = word
        self._reply(exchange)

    async def _command(self, text: str, channel: ChannelKey, person: str, goes: Any, *, hurry: bool) -> None:
        id = f"c{self.counted['commands']}"
        self.counted["commands"] += 1
        exchange = await self.harness.intake.accept(self._message(channel, id, person, text, None))
        assert exchange is not None, f"{text} is taken for a message that was known"
        gone = [word for word in self.words.values() if word.exchange < exchange.id and goes(word)]
        if hurry:  # the answers that go are stopped while others go on
            for go_on in self.engine.held:
                go_on.set()
        await self._shown(exchange)
        await self.harness.exchanges.complete(exchange)
        self.harness.exchanges.release(exchange)
        self._gone(gone)

    async def _edit(self, word: Word) -> None:
        if word.is_gone or self._is_moved(word):
            return
        secret = self._secret()
        message = self._message(word.home, word.key[2], word.author.partition(":")[2], secret, None)
        # From now on, for the answer may begin before the edit has returned.
        self.words[secret] = edited = replace(word, text=secret)
        exchange = await self.harness.intake.edit(message)
        assert exchange is not None, f"the edit of {word.text} to {secret} is lost"
        self.by_key[word.key] = edited
        word.is_gone = True
        self._reply(exchange)

    async def _delete(self, word: Word) -> None:
        if not self._is_moved(word):
            channel = replace(word.home, thread=None)
            await self.harness.intake.delete(channel, word.key[2])
            self._gone([word])

    async def _press(self, word: Word, action: Action) -> None:
        author = Author(word.home.platform, word.author.partition(":")[2], "")
        for part in self.placed.get(word.key[:2], [])[-3:]:
            pressed = await self.harness.intake.on_button(word.home, part, action, author)
            if pressed.again is not None:
                self._reply(pressed.again)

    async def _retry(self, channel: ChannelKey, person: str) -> None:
        id = f"c{self.counted['commands']}"
        self.counted["commands"] += 1
        exchange = await self.harness.intake.accept(self._message(channel, id, person, "/retry", None))
        assert exchange is not None, "/retry is taken for a message that was known"
        self._reply(exchange)

    async def _move(self, channel: ChannelKey, to: str) -> None:
        await self._finish()
        await self.harness.intake.rename_channel(channel, to)
        self.by_key = {key: word for key, word in self.by_key.items() if key[:2] != (channel.platform, channel.channel)}
        for word in self.words.values():
            if (word.home.platform, word.home.channel) == (channel.platform, channel.channel):
                word.home = replace(word.home, channel=to)

    async def _go_on(self, count: int) -> None:
        for _ in range(count):
            if self.engine.held:
                self.engine.held.pop(0).set()
        await asyncio.sleep(0.003)

    async def _restart(self) -> None:
        for task in self.replies:
            task.cancel()
        await asyncio.gather(*self.replies, return_exceptions=True)
        await self.stack.aclose()
        await self._open()
        for platform in PLATFORMS:
            for exchange in await self.harness.intake.recover(platform):
                self._reply(exchange)

    async def _expire(self) -> None:
        await self._finish()
        await self.harness.store.expire(NOON + timedelta(minutes=self.minutes + 1))
        self._gone(list(self.words.values()))

    async def _finish(self) -> None:
        """Let all be answered."""
        self.engine.is_open = True
        while self.replies:
            for go_on in self.engine.held:
                go_on.set()
            self.engine.held.clear()
            await asyncio.wait(self.replies, timeout=0.05)
        self.engine.is_open = False

    async def _end(self) -> None:
        try:
            await self._finish()
            for platform in PLATFORMS:
                owed = await self.harness.intake.recover(platform)
                assert owed == [], f"all was delivered, and still owed: {owed}"
            await self.stack.aclose()  # of a file that was rewritten a moment ago the rest goes at the end
            content = b"".join(path.read_bytes() for path in self.folder.iterdir())
            left = [word.text for word in self.words.values() if word.is_erased and word.text.encode() in content]
            assert left == [], f"deleted, and still in the files: {left}"
            self.counted["words erased"] += sum(word.is_erased for word in self.words.values())
        finally:
            await self.stack.aclose()

    def _reply(self, exchange: Exchange) -> None:
        async def reply() -> None:
            place = (exchange.message.channel.platform, exchange.message.channel.channel)
            if not exchange.parts and exchange.kind is Kind.CHAT:
                part = IDS[len(self.placed.setdefault(place, [])) % 5] + str(len(self.placed[place]))
                self.placed[place].append(part)
                with suppress(ClaimLost, StoreError):
                    await self.harness.record_part(exchange, 0, part)
            with suppress(ClaimLost):  # edited or retried meanwhile
                await self._shown(exchange)
                await self.harness.exchanges.complete(exchange)

        task = asyncio.create_task(reply())
        self.replies.add(task)
        task.add_done_callback(self._replied)

    def _replied(self, task: asyncio.Task[None]) -> None:
        self.replies.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.violations.append(f"a reply failed: {error!r}")

    async def _shown(self, exchange: Exchange) -> None:
        own = set(SECRET.findall(exchange.message.text))
        async with self.harness.intake.answers.stream(exchange) as events:
            async for event in events:
                if isinstance(event, Delta | Notice) and not own.issuperset(SECRET.findall(event.text)):
                    self.violations.append(f"{event.text} is shown to who asked {own}")

    def _gone(self, words: list[Word]) -> None:
        for word in words:
            word.is_gone = word.is_erased = True

    def _some(self, data: st.DataObject) -> Word:
        return data.draw(st.sampled_from(list(self.words.values())[-12:]))

    def _is_moved(self, word: Word) -> bool:
        return self.by_key.get(word.key) is not word

    def _secret(self) -> str:
        self.counted["secrets"] += 1
        return f"w{self.counted['secrets']}e"

    def _message(self, channel: ChannelKey, id: str, person: str, text: str, quoted: Word | None) -> IncomingMessage:
        self.minutes += 1
        return IncomingMessage(
            id,
            channel,
            Author(channel.platform, person, ""),
            text,
            NOON + timedelta(minutes=self.minutes),
            quoted=quoted.text if quoted else None,
        )


def _is_within(home: ChannelKey, channel: ChannelKey) -> bool:
    return home == channel or (channel.thread is None and replace(home, thread=None) == channel)


async def _failure(work: Coroutine[Any, Any, None]) -> BaseException | None:
    task = asyncio.ensure_future(work)
    await asyncio.wait([task])
    return task.exception()


def _found(error: BaseException) -> str:
    """What a failure says of itself, and the line here that it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__]
    return f"{type(error).__name__} at line {lines[-1] if lines else '?'}: {error}"


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    Machine.counted.clear()
    Machine.failures.clear()
    sized = settings(
        max_examples=1000 if scale == "full" else 20,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        # Not made smaller: a failure that takes tens of steps would be run for a quarter of an hour.
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    machine = seeded(seed)(type("Seeded", (Machine,), {}))
    tried = asyncio.create_task(asyncio.to_thread(run_state_machine_as_test, machine, settings=sized))
    await asyncio.wait([tried])
    counts = ", ".join(
        f"{kind} {Machine.counted[kind]:,}" for kind in ("examples", "prompts", "words read", "words erased")
    )
    error = tried.exception()
    if error is not None:
        error, steps = Machine.failures[0] if Machine.failures else (error, [])
        print("".join(traceback.format_exception(error)), *steps, sep="\n", file=sys.stderr)
        counts += f"; {_found(error)}"
    yield Row("all", counts, error is None)
