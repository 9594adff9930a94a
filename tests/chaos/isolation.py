"""R16: two platforms with the same ids, whose users edit, delete, clear and use /forget.

A Hypothesis state machine over the real store, intake and conversations.  Every message has a
secret word, and so have files, messages before a question and personas that are set in the chat;
the engine checks each prompt.  No prompt and no reply may contain a word of another conversation,
or one that was deleted before the prompt was built.  At the end no word stands in the database's
files or any earlier copy of them, and with the keys that are left no deleted word can be decrypted
from them.
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
from datetime import datetime, timedelta
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
    Attachment,
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
    FurtherKind,
    FurtherMessage,
    IncomingMessage,
    Kind,
    Notice,
    Usage,
)
from bot.errors import ClaimLost, StoreError
from tests.chaos.figure import Row, Scale
from tests.harness.harness import NO_LIMITS, Harness, make_harness
from tests.harness.messages import NOON
from tests.storage.forensics import KeptFiles

NAME = "R16"

_PROGRESS_SECONDS = 30.0
STEPS = 22  # per example; a thousand examples take four minutes on two busy cores
PLATFORMS = ("p", "q")
# The same id is a channel, a thread and a message; joined with ":" or "/" some are equal.
# Without spaces, which no platform's id contains.
IDS = ("x", "y", "x/y", "x:y", "X")
# The first letter tells the kind: of a question, a file, a message before a question, a persona.
QUESTION, FILE, CONTEXT, PERSONA = "wfcp"
SECRET = re.compile(r"[wfcp]\d+e")
MOST_CONTEXT = 2

channels = st.builds(
    ChannelKey, st.sampled_from(PLATFORMS), st.sampled_from(("x", "x/y")), st.sampled_from((None, "x", "x:y"))
)
names = st.sampled_from(IDS)
messages = st.sampled_from((*IDS, *(f"{id}/{number}" for id in IDS for number in range(8))))
users = st.sampled_from(("1", "2"))
# Without a file, with one that its platform has read before, with one that is fetched and read by a process of its own.
files = st.sampled_from((*["none"] * 20, *["uploaded"] * 19, "fetched"))


@dataclass(eq=False)
class Word:
    """A secret word, and its message: that of its question for a word in a file."""

    text: str
    exchange: int
    key: tuple[str, str, str]  # platform, channel, message
    channel_key: ChannelKey
    author: str
    quotes: "Word | None" = None
    is_deleted: bool = False  # no later prompt may contain it
    is_erased: bool = False  # nor the files
    is_gone: bool = False  # its platform has it no more
    sent_at: datetime = NOON

    @property
    def kind(self) -> str:
        return self.text[0]


class PromptChecker:
    """An engine that checks every prompt, and answers with the secret of its question."""

    def __init__(self, machine: "IsolationMachine") -> None:
        self._machine = machine
        self.paused: list[asyncio.Event] = []
        self.is_open = False

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("checker", "checker", "none", "none", "none", context_length=100_000)

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(running=0, waiting=0)

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        return len(messages)

    def tokenize(self, text: str) -> None:
        """Without a tokenizer."""

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        own = self._machine.check_prompt(request)
        yield Delta(f"half an answer to {own}, ")
        if not self.is_open:
            resume = asyncio.Event()
            self.paused.append(resume)
            await resume.wait()
        yield Delta("and the rest")
        yield Finished(FinishReason.STOP, Usage(1, 1))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """No resources."""


class IsolationMachine(RuleBasedStateMachine):
    counted: ClassVar[Counter[str]] = Counter()
    # Stored here: for a race that does not repeat, Hypothesis only reports flaky runs.
    failures: ClassVar[list[tuple[BaseException, list[str]]]] = []

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.runner = asyncio.Runner()
        self.words: dict[str, Word] = {}
        self.by_key: dict[tuple[str, str, str], Word] = {}
        self.parts: dict[tuple[str, str], list[str]] = {}
        self.violations: list[str] = []
        self.replies: set[asyncio.Task[None]] = set()
        self.minutes = 0
        self.steps: list[tuple[str, dict[str, Any]]] = []
        self.counted["examples"] += 1
        self.kept = KeptFiles(self.folder)
        self.run(self._open())

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        assert isinstance(work, CoroutineType)
        given = {name: value for name, value in getcoroutinelocals(work).items() if value is not self}
        self.steps.append((work.__name__, given))
        error = self.runner.run(_run_to_end(work))
        if error is None and self.violations:
            error = AssertionError("; ".join(self.violations))
        if error is not None:
            calls = [f"{name}({', '.join(f'{k}={v!r}' for k, v in given.items())})" for name, given in self.steps]
            self.failures.append((error, calls))
            raise error

    # Rules

    @rule(channel=channels, asked=st.lists(st.tuples(messages, users, st.booleans(), files), min_size=1, max_size=5))
    def ask(self, channel: ChannelKey, asked: list[tuple[str, str, bool, str]]) -> None:
        for id, user, quote, file in asked:
            self.run(self._ask(channel, id, user, quote, file))

    @rule(channel=channels, said=st.lists(users, min_size=1, max_size=3))
    def chatter(self, channel: ChannelKey, said: list[str]) -> None:
        for user in said:
            self._chatter(channel, user)

    @precondition(lambda self: self.of_kind(CONTEXT))
    @rule(data=st.data())
    def delete_chatter(self, data: st.DataObject) -> None:
        word = data.draw(st.sampled_from(self.of_kind(CONTEXT)[-6:]))
        if not word.is_gone:
            self.run(self._delete_chatter(word))

    @rule(channel=channels, user=users, is_cleared=st.booleans())
    def persona(self, channel: ChannelKey, user: str, is_cleared: bool) -> None:
        self.run(self._persona(channel, user, is_cleared=is_cleared))

    @rule()
    def answer_all(self) -> None:
        self.run(self._finish())

    @rule(channel=channels, user=users, while_streaming=st.booleans())
    def clear(self, channel: ChannelKey, user: str, while_streaming: bool) -> None:
        self.run(
            self._command(
                "/clear",
                channel,
                user,
                lambda word: word.kind != PERSONA and _is_within(word.channel_key, channel),
                while_streaming=while_streaming,
            )
        )

    @rule(channel=channels, user=users, while_streaming=st.booleans())
    def forget(self, channel: ChannelKey, user: str, while_streaming: bool) -> None:
        author = f"{channel.platform}:{user}"
        self.run(
            self._command(
                "/forget me", channel, user, lambda word: word.author == author, while_streaming=while_streaming
            )
        )

    @precondition(lambda self: self.of_kind(QUESTION))
    @rule(data=st.data(), keeps_file=st.booleans())
    def edit(self, data: st.DataObject, keeps_file: bool) -> None:
        self.run(self._edit(self._some(data), keeps_file=keeps_file))

    @precondition(lambda self: self.of_kind(QUESTION))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.run(self._delete(self._some(data)))

    @precondition(lambda self: self.of_kind(QUESTION))
    @rule(data=st.data(), action=st.sampled_from(Action))
    def press(self, data: st.DataObject, action: Action) -> None:
        self.run(self._press(self._some(data), action))

    @rule(channel=channels, user=users)
    def retry(self, channel: ChannelKey, user: str) -> None:
        self.run(self._retry(channel, user))

    @rule(platform=st.sampled_from(PLATFORMS), channel=names, to=names)
    def move(self, platform: str, channel: str, to: str) -> None:
        if channel != to:
            self.run(self._move(ChannelKey(platform, channel), to))

    @rule(count=st.integers(1, 4))
    def resume(self, count: int) -> None:
        self.run(self._resume(count))

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

    # Implementation

    def check_prompt(self, request: ChatRequest) -> str:
        """Record words that this prompt must not contain; return the secret of its question."""
        self.counted["prompts"] += 1
        own = self._read(request.messages[-1], QUESTION)[-1]
        for message in request.messages:
            words = self._read(message)
            questions = [word for word in words if word.kind == QUESTION]
            spoken = questions[-1] if questions else None
            for word in words:
                self.counted["words read"] += 1
                if word.is_deleted:
                    self.violations.append(f"{word} is in a later prompt")
                is_quoted = spoken is not None and word is spoken.quotes  # perhaps from another thread
                if not (is_quoted or _may_be_read(word, own)):
                    self.violations.append(f"{word} is in a prompt of {own}")
                is_owned = {
                    QUESTION: is_quoted or word is spoken,
                    FILE: spoken is not None and word.key == spoken.key,
                    CONTEXT: spoken is not None,
                    PERSONA: message.role == "system",
                }
                if not is_owned[word.kind]:
                    self.violations.append(f"{word} does not belong to {spoken}")
        return own.text

    def of_kind(self, kind: str) -> list[Word]:
        return [word for word in self.words.values() if word.kind == kind]

    def _read(self, message: ChatMessage, kinds: str = QUESTION + FILE + CONTEXT + PERSONA) -> list[Word]:
        return [self.words[text] for text in SECRET.findall(message.content) if text[0] in kinds]

    async def _open(self) -> None:
        self.engine = PromptChecker(self)
        self.stack = AsyncExitStack()
        settings = ConversationSection(name_speakers=False, context_messages=MOST_CONTEXT)
        harness = make_harness(self.folder, self.engine, conversation=settings, limits=NO_LIMITS)  # type: ignore[arg-type]  # an Engine
        self.harness: Harness = await self.stack.enter_async_context(harness)
        for platform in PLATFORMS:
            self.harness.access.register_managers(platform, _is_manager)
            self.harness.intake.context.before[platform] = self._before
            self.harness.intake.files.sources[platform] = _fetch

    async def _before(self, message: IncomingMessage, most: int) -> Sequence[FurtherMessage]:
        """Return what the platform's history has before a question: not what was deleted there."""
        said = [
            word
            for word in self.of_kind(CONTEXT)
            if word.channel_key == message.channel and word.sent_at < message.sent_at and not word.is_gone
        ]
        return [
            FurtherMessage(
                word.key[2], word.key[1], _author(word), f"before: {word.text}", word.sent_at, FurtherKind.BEFORE
            )
            for word in said[-most:]
        ]

    def _chatter(self, channel: ChannelKey, user: str) -> None:
        secret = self._secret(CONTEXT)
        said = self._message(channel, f"o{secret[1:]}", user, secret, None)
        key = (channel.platform, channel.channel, said.id)
        self.words[secret] = Word(secret, 0, key, channel, said.author.key, sent_at=said.sent_at)

    async def _delete_chatter(self, word: Word) -> None:
        self.kept.copy()
        word.is_gone = True
        await self.harness.intake.delete(replace(word.channel_key, thread=None), word.key[2])
        self._mark_deleted([word])

    async def _persona(self, channel: ChannelKey, user: str, *, is_cleared: bool) -> None:
        secret = self._secret(PERSONA)
        if not is_cleared:
            place = channel.platform, channel.channel, ""
            self.words[secret] = Word(secret, 0, place, channel, Author(channel.platform, user, "").key)
        await self._carry_out(
            await self._accept_command("/persona clear" if is_cleared else f"/persona set {secret}", channel, user)
        )

    async def _accept_command(self, text: str, channel: ChannelKey, user: str) -> Exchange:
        id = f"c{self.counted['commands']}"
        self.counted["commands"] += 1
        exchange = await self.harness.intake.accept(self._message(channel, id, user, text, None))
        assert exchange is not None, f"{text} is taken for a message that was known"
        return exchange

    async def _carry_out(self, command: Exchange) -> None:
        await self._consume(command)
        await self.harness.exchanges.complete(command)
        self.harness.exchanges.release(command)

    async def _ask(self, channel: ChannelKey, id: str, user: str, quote: bool, file: str) -> None:
        key = (channel.platform, channel.channel, id)
        near = [
            word
            for word in self.of_kind(QUESTION)
            if (word.channel_key.platform, word.channel_key.channel) == key[:2] and not word.is_deleted
        ]
        quoted = near[-1] if quote and near else None
        secret = self._secret()
        in_file = self._secret(FILE)
        attached = (_attachment(in_file, is_read=file == "uploaded"),) if file != "none" else ()
        message = replace(self._message(channel, id, user, secret, quoted), files=attached)
        exchange = await self.harness.intake.accept(message)
        if key in self.by_key:
            assert exchange is None, "a message that was known is answered again"
            return
        assert exchange is not None, f"a new message is taken for one that was known: {message}"
        word = Word(secret, exchange.id, key, channel, message.author.key, quoted)
        self.words[secret] = self.by_key[key] = word
        if attached:
            self.words[in_file] = replace(word, text=in_file, quotes=None)
        self._reply(exchange)

    async def _command(
        self, text: str, channel: ChannelKey, user: str, is_deleted: Any, *, while_streaming: bool
    ) -> None:
        self.kept.copy()
        exchange = await self._accept_command(text, channel, user)
        gone = [word for word in self.words.values() if word.exchange < exchange.id and is_deleted(word)]
        if while_streaming:  # the held answers continue while they are deleted
            for resume in self.engine.paused:
                resume.set()
        await self._carry_out(exchange)
        self._mark_deleted(gone)

    async def _edit(self, word: Word, *, keeps_file: bool) -> None:
        if word.is_deleted or self._is_moved(word):
            return
        secret = self._secret()
        message = self._message(word.channel_key, word.key[2], word.author.partition(":")[2], secret, None)
        attached = [each for each in self.of_kind(FILE) if each.key == word.key and not each.is_deleted]
        if keeps_file:
            message = replace(message, files=tuple(_attachment(each.text, is_read=False) for each in attached))
        self.kept.copy()
        # Before the call, because the answer may begin before it returns.
        self.words[secret] = edited = replace(word, text=secret)
        exchange = await self.harness.intake.edit(message)
        assert exchange is not None, f"the edit of {word.text} to {secret} is lost"
        self.by_key[word.key] = edited
        word.is_deleted = True
        if not keeps_file:
            self._mark_deleted(attached)
        self._reply(exchange)

    async def _delete(self, word: Word) -> None:
        if not self._is_moved(word):
            self.kept.copy()
            channel = replace(word.channel_key, thread=None)
            await self.harness.intake.delete(channel, word.key[2])
            self._mark_deleted([word])

    async def _press(self, word: Word, action: Action) -> None:
        author = Author(word.channel_key.platform, word.author.partition(":")[2], "")
        for part in self.parts.get(word.key[:2], [])[-3:]:
            pressed = await self.harness.intake.on_button(word.channel_key, part, action, author)
            if pressed.again is not None:
                self._reply(pressed.again)

    async def _retry(self, channel: ChannelKey, user: str) -> None:
        self._reply(await self._accept_command("/retry", channel, user))

    async def _move(self, channel: ChannelKey, to: str) -> None:
        await self._finish()
        await self.harness.intake.rename_channel(channel, to)
        self.by_key = {key: word for key, word in self.by_key.items() if key[:2] != (channel.platform, channel.channel)}
        for word in self.words.values():
            if (word.channel_key.platform, word.channel_key.channel) == (channel.platform, channel.channel):
                word.channel_key = replace(word.channel_key, channel=to)
                word.is_gone = True  # what was said before is not in the new channel

    async def _resume(self, count: int) -> None:
        for _ in range(count):
            if self.engine.paused:
                self.engine.paused.pop(0).set()
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
        self.kept.copy()
        await self.harness.store.expire(NOON + timedelta(minutes=self.minutes + 1))
        in_force = {change.text for change in await self.harness.store.settings()}
        for word in self.words.values():
            word.is_gone = True
        self._mark_deleted([word for word in self.words.values() if word.text not in in_force])

    async def _finish(self) -> None:
        """Wait until every exchange is answered."""
        self.engine.is_open = True
        while self.replies:
            for resume in self.engine.paused:
                resume.set()
            self.engine.paused.clear()
            await asyncio.wait(self.replies, timeout=0.05)
        self.engine.is_open = False

    async def _end(self) -> None:
        try:
            await self._finish()
            for platform in PLATFORMS:
                owed = await self.harness.intake.recover(platform)
                assert owed == [], f"owed although everything was delivered: {owed}"
            self.kept.copy()
            await self.stack.aclose()
            plain = [word.text for word in self.words.values() if word.text.encode() in self.kept.content]
            assert plain == [], f"not encrypted: {plain}"
            decrypted = self.kept.decrypted()
            left = [word.text for word in self.words.values() if word.is_erased and word.text.encode() in decrypted]
            assert left == [], f"deleted, and still to be decrypted: {left}"
            self.counted["words erased"] += sum(word.is_erased for word in self.words.values())
        finally:
            await self.stack.aclose()

    def _reply(self, exchange: Exchange) -> None:
        async def reply() -> None:
            place = (exchange.message.channel.platform, exchange.message.channel.channel)
            if not exchange.parts and exchange.kind is Kind.CHAT:
                part = IDS[len(self.parts.setdefault(place, [])) % 5] + str(len(self.parts[place]))
                self.parts[place].append(part)
                with suppress(ClaimLost, StoreError):
                    await self.harness.record_part(exchange, 0, part)
            with suppress(ClaimLost):  # edited or retried meanwhile
                await self._consume(exchange)
                await self.harness.exchanges.complete(exchange)

        task = asyncio.create_task(reply())
        self.replies.add(task)
        task.add_done_callback(self._replied)

    def _replied(self, task: asyncio.Task[None]) -> None:
        self.replies.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.violations.append(f"a reply failed: {error!r}")

    async def _consume(self, exchange: Exchange) -> None:
        names = (file.name for file in exchange.message.files)
        own = set(SECRET.findall(" ".join((exchange.message.text, *names))))
        async with self.harness.intake.answers.stream(exchange) as events:
            async for event in events:
                if isinstance(event, Delta | Notice) and not own.issuperset(SECRET.findall(event.text)):
                    self.violations.append(f"{event.text} is shown to who asked {own}")

    def _mark_deleted(self, words: list[Word]) -> None:
        """Mark words as deleted, those of questions with the words in their files."""
        keys = {word.key for word in words if word.kind == QUESTION}
        for word in (*words, *(each for each in self.of_kind(FILE) if each.key in keys)):
            word.is_deleted = word.is_erased = True

    def _some(self, data: st.DataObject) -> Word:
        return data.draw(st.sampled_from(self.of_kind(QUESTION)[-12:]))

    def _is_moved(self, word: Word) -> bool:
        return self.by_key.get(word.key) is not word

    def _secret(self, kind: str = QUESTION) -> str:
        self.counted["secrets"] += 1
        return f"{kind}{self.counted['secrets']}e"

    def _message(self, channel: ChannelKey, id: str, user: str, text: str, quoted: Word | None) -> IncomingMessage:
        self.minutes += 1
        return IncomingMessage(
            id,
            channel,
            Author(channel.platform, user, ""),
            text,
            NOON + timedelta(minutes=self.minutes),
            quoted=quoted.text if quoted else None,
        )


def _is_within(channel_key: ChannelKey, channel: ChannelKey) -> bool:
    return channel_key == channel or (channel.thread is None and replace(channel_key, thread=None) == channel)


def _may_be_read(word: Word, own: Word) -> bool:
    """Return whether a word belongs to the conversation of a question; a channel's persona is in its threads too."""
    of_channel = replace(own.channel_key, thread=None)
    return word.channel_key == own.channel_key or (word.kind == PERSONA and word.channel_key == of_channel)


def _attachment(secret: str, *, is_read: bool) -> Attachment:
    """Return a file as its platform tells of it, or with what was read of it."""
    content = _content(secret)
    text, source = (content, "") if is_read else ("", secret)
    return Attachment(f"{secret}.txt", "text/plain", len(content), source, text)


async def _fetch(file: Attachment) -> AsyncIterator[bytes]:
    yield _content(file.source).encode()


def _content(secret: str) -> str:
    return f"read in a file: {secret}"


def _author(word: Word) -> Author:
    platform, _, id = word.author.partition(":")
    return Author(platform, id, "")


async def _is_manager(message: IncomingMessage) -> bool:
    return True


async def _run_to_end(work: Coroutine[Any, Any, None]) -> BaseException | None:
    task = asyncio.ensure_future(work)
    await asyncio.wait([task])
    return task.exception()


def _describe(error: BaseException) -> str:
    """Return a failure's message with the line of this file that raised it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__]
    return f"{type(error).__name__} at line {lines[-1] if lines else '?'}: {error}"


def _counts() -> str:
    kinds = ("examples", "prompts", "words read", "words erased")
    return ", ".join(f"{kind} {IsolationMachine.counted[kind]:,}" for kind in kinds)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    IsolationMachine.counted.clear()
    IsolationMachine.failures.clear()
    sized = settings(
        max_examples=1000 if scale == "full" else 20,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        # Without shrinking, which takes a quarter of an hour for tens of steps.
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    machine = seeded(seed)(type("Seeded", (IsolationMachine,), {}))
    run = asyncio.create_task(asyncio.to_thread(run_state_machine_as_test, machine, settings=sized))
    while not (await asyncio.wait([run], timeout=_PROGRESS_SECONDS))[0]:
        print(f"{NAME:<4} so far: {_counts()}", flush=True)
    counts = _counts()
    error = run.exception()
    if error is not None:
        error, steps = IsolationMachine.failures[0] if IsolationMachine.failures else (error, [])
        print("".join(traceback.format_exception(error)), *steps, sep="\n", file=sys.stderr)
        counts += f"; {_describe(error)}"
    yield Row("all", counts, error is None)
