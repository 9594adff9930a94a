"""Several models behind one Engine: each request names its own."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

import structlog

from bot.config.schema import DEFAULT_MODEL, EngineSection
from bot.domain import (
    ChatMessage,
    ChatRequest,
    EngineEvent,
    EngineInfo,
    EngineLoad,
    Fallback,
    ModelStatus,
    Queued,
    Thought,
    Tokens,
)
from bot.engine.base import Engine, Memory, Progress, silent
from bot.engine.hot_swap import SUPERSEDED, HotSwapEngine, Opener, guarded
from bot.engine.shared import base_of, with_prefixes
from bot.errors import EngineBusy, EngineError, EngineUnavailable, PicturesRefused, PromptTooLong
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Tokens left for the answer where a conversation is cut for a fallback with a smaller context.
_ANSWER_TOKENS = 512

Check = Callable[[EngineSection, Memory], Memory]
"""Returns the bytes that a model needs by device, where others need those of the second argument."""


def no_check(section: EngineSection, taken: Memory) -> Memory:
    return {}


class ModelRouter:
    """Passes each request to the model that it names, by default that of `[engine]`.

    If that cannot begin an answer, its fallback does; an answer that has begun is never
    replaced.  Each model has its own queue and its own changes (`HotSwapEngine`); tables with
    a `base` share those of another, and differ in the P-Tuning prefix of their rows.  `info`,
    `load` and `count_tokens` are those of the default model, or of its fallback while it is
    not loaded.

    `open` and `check` run in threads; `check` raises EngineError if a model cannot be loaded
    beside the others.
    """

    def __init__(
        self,
        sections: Mapping[str, EngineSection],
        open: Opener,
        clock: Clock,
        *,
        check: Check = no_check,
        progress: Progress = silent,
    ) -> None:
        self._wanted = dict(sections)
        self._open = open
        self._clock = clock
        self._check = check
        self._progress = progress
        self._engines: dict[str, HotSwapEngine] = {}  # the loaded ones
        self._faults: dict[str, str] = {}  # of the others
        self._needs: dict[str, Memory] = {}
        self._checked: dict[str, Memory] = {}  # needs of a change in progress
        self._starting = asyncio.Lock()
        self._changes: dict[str, asyncio.Task[str | None]] = {}  # the latest of each loaded model

    @property
    def info(self) -> EngineInfo:
        return self._default().info

    @property
    def load(self) -> EngineLoad:
        return self._default().load

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        return self._default().count_tokens(messages)

    def tokenize(self, text: str) -> Tokens | None:
        return self._default().tokenize(text)

    def serving(self, name: str | None) -> Engine:
        """Return what answers for a model now, to count its tokens: itself, or its first loaded fallback.

        Raises:
            EngineUnavailable: It is unknown or not loaded, and has no loaded fallback.
        """
        chain = self._chain(name or DEFAULT_MODEL)
        return self._engine(next((each for each in chain if self._base(each) in self._engines), chain[0]))

    def statuses(self) -> list[ModelStatus]:
        """Return the state of every model, the default one first."""
        return [self._status(name) for name in self._wanted]

    def _status(self, name: str) -> ModelStatus:
        base, shared = self._base(name), self._wanted[name].base
        engine = self._engines.get(base)
        if engine is None:
            return ModelStatus(name, fault=self._faults.get(base), base=shared)
        needed = sum(self._needs.get(base, {}).values())
        return ModelStatus(name, engine.info, _load_in_table(base, engine.load), base=shared, bytes_needed=needed)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        """Stream the answer as an Engine, with a `Fallback` before the text of a fallback.

        Raises:
            EngineUnavailable: The model is unknown or not loaded, and has no fallback.
        """
        names = self._chain(request.model or DEFAULT_MODEL)
        names = [name for name in names if name == names[0] or self._may_answer(request, name)]
        for name in names:
            has_begun, has_fallback = False, name != names[-1]
            try:
                engine = self._engine(name)
                prefix = name if self._base(name) != name else ""
                own = replace(request, has_fallback=has_fallback, prefix=prefix)
                if name != names[0]:
                    messages = await asyncio.to_thread(_whole if request.is_whole else _fitting, request, engine)
                    own = replace(own, messages=messages)
                    yield Fallback(name, len(request.messages) - len(own.messages))
                async with aclosing(engine.generate(own)) as events:
                    async for event in events:
                        has_begun = has_begun or not isinstance(event, Queued | Thought)
                        yield event
            except (EngineBusy, PicturesRefused, PromptTooLong):
                raise  # the limits of the model, which another one would hide
            except EngineError as error:
                if has_begun or not has_fallback:
                    raise _error_in_table(self._base(name), error) from None
                why = _in_table(self._base(name), str(error))
                log.warning("a model cannot answer, its fallback takes over", model=name, error=why)
            else:
                return

    async def check(self, name: str, section: EngineSection) -> None:
        """Check, in a thread, whether what `section` describes could replace a model beside the others.

        Raises:
            EngineError: It could not.
        """
        wanted = {**self._wanted, name: section}
        base = base_of(wanted, name)
        try:
            await asyncio.to_thread(guarded, self._needs_beside_others, base, with_prefixes(wanted, base))
        except EngineError as error:
            raise _error_in_table(base, error) from error

    async def change(self, name: str, section: EngineSection) -> str | None:
        """Replace a model; return None, or the reason if the earlier state stays.

        Raises:
            EngineUnavailable: The new and the old model cannot be loaded.
        """
        self._wanted[name] = section
        base = self._base(name)
        async with self._starting:
            if self._wanted[name] is not section:
                return SUPERSEDED
            if base in self._faults:
                try:
                    await self._start(base)
                except EngineError as error:
                    self._faults[base] = str(error)
                return self._faults.get(base)
        change = self._changes[base] = asyncio.create_task(self._change(base), name=f"change of {base}")
        failure = await change
        # The change of a table that shares this model covers this one's: both are in `_wanted`.
        while failure == SUPERSEDED and self._wanted[name] is section and self._changes[base] is not change:
            change = self._changes[base]
            failure = await change
        return failure

    async def _change(self, base: str) -> str | None:
        try:
            failure = await self._engines[base].change(with_prefixes(self._wanted, base))
        except EngineUnavailable as error:
            raise EngineUnavailable(_in_table(base, str(error))) from error
        if failure is None:
            self._needs[base] = self._checked.get(base, {})
            return None
        return _in_table(base, failure)

    async def __aenter__(self) -> Self:
        """Load the models, one after the other.

        Raises:
            EngineError: A model without a working fallback cannot be loaded.
        """
        errors: dict[str, EngineError] = {}
        try:
            for name in [each for each in self._wanted if self._base(each) == each]:
                try:
                    await self._start(name)
                except EngineError as error:
                    if not self._wanted[name].fallback:
                        raise
                    errors[name] = error
                    self._faults[name] = str(error)
                    log.error("model not loaded", model=name, fallback=self._wanted[name].fallback, error=str(error))
            for name in self._wanted:
                failure = errors.get(self._base(name))
                if failure is not None and not any(self._base(other) in self._engines for other in self._chain(name)):
                    raise failure
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(engine.__aexit__(kind, error, trace) for engine in self._engines.values()))

    def _chain(self, name: str) -> list[str]:
        """Return the model and the fallbacks after it."""
        names = [name]
        while (section := self._wanted.get(names[-1])) is not None and section.fallback not in ("", *names):
            names.append(section.fallback)
        return names

    def _may_answer(self, request: ChatRequest, name: str) -> bool:
        """Return whether the request allows this fallback."""
        engine = self._engines.get(self._base(name))
        return not request.models or name in request.models or (engine and engine.info.model) in request.models

    def _default(self) -> Engine:
        return self.serving(DEFAULT_MODEL)

    def _base(self, name: str) -> str:
        return base_of(self._wanted, name)

    def _engine(self, name: str) -> HotSwapEngine:
        base = self._base(name)
        engine = self._engines.get(base)
        if engine is None:
            raise EngineUnavailable(f"the model {name} is not loaded: {self._faults.get(base, 'no such model')}")
        return engine

    async def _start(self, name: str) -> None:
        section, check = with_prefixes(self._wanted, name), partial(self._check_beside_others, name)
        engine = HotSwapEngine(section, self._open, self._clock, check=check, progress=self._progress)
        try:
            await engine.check(section)
            await engine.__aenter__()
        except EngineError as error:
            raise _error_in_table(name, error) from error
        self._engines[name] = engine
        self._needs[name] = self._checked.get(name, {})
        self._faults.pop(name, None)

    def _check_beside_others(self, name: str, section: EngineSection) -> None:
        self._checked[name] = self._needs_beside_others(name, section)

    def _needs_beside_others(self, name: str, section: EngineSection) -> Memory:
        taken: Counter[str] = Counter()
        for other, needs in list(self._needs.items()):
            if other != name:
                taken.update(needs)
        return self._check(section, taken)


def check_models(sections: Mapping[str, EngineSection], check: Check) -> Iterator[tuple[str, EngineError | None]]:
    """Check the models in the order in which they are loaded; yield each name, and the error if there is one.

    A table that shares a model is checked with it.
    """
    taken: Counter[str] = Counter()
    for name in sections:
        if base_of(sections, name) != name:
            continue
        try:
            taken.update(guarded(check, with_prefixes(sections, name), taken))
        except EngineError as error:
            yield name, _error_in_table(name, error)
        else:
            yield name, None


def _whole(request: ChatRequest, engine: Engine) -> tuple[ChatMessage, ...]:
    """Return the messages, which the engine takes as they are.

    Raises:
        PicturesRefused: They have more pictures than it sees.
        PromptTooLong: They do not fit its context.
    """
    most, context = engine.info.most_pictures, engine.info.context_length
    if sum(len(message.pictures) for message in request.messages) > most:
        raise PicturesRefused(most)
    if (tokens := engine.count_tokens(request.messages)) >= context:
        raise PromptTooLong(tokens, context)
    return request.messages


def _fitting(request: ChatRequest, engine: Engine) -> tuple[ChatMessage, ...]:
    """Drop the oldest turns of a conversation that was cut for a larger context, and pictures that are not seen.

    Raises:
        PicturesRefused: The question has nothing else.
    """
    request = replace(request, messages=_with_pictures(request.messages, engine.info.most_pictures))
    context = engine.info.context_length
    room = context - min(request.params.max_tokens or _ANSWER_TOKENS, context // 2)
    opening = [message for message in request.messages[:1] if message.role == "system"]
    turns = list(request.messages[len(opening) :])
    while len(turns) > 1 and engine.count_tokens((*opening, *turns)) > room:
        del turns[:1]
        while len(turns) > 1 and turns[0].role == "assistant":
            del turns[:1]
    return (*opening, *turns)


def _with_pictures(messages: Sequence[ChatMessage], most: int) -> tuple[ChatMessage, ...]:
    """Return the messages with the first pictures of the question, and the last ones before it."""
    left, newest_first = most, []
    for message in reversed(messages):
        kept = message.pictures[:left]
        newest_first.append(replace(message, pictures=kept))
        left -= len(kept)
    if messages[-1].pictures and not (messages[-1].content or newest_first[0].pictures):
        raise PicturesRefused(most)
    return tuple(reversed(newest_first))


def _in_table(name: str, sentence: str) -> str:
    """Name the settings of a model by its own table.

    >>> _in_table("big", 'engine.model = "/x": no such folder')
    'models.big.model = "/x": no such folder'
    >>> _in_table("big", "set BOT_ENGINE__KEY or the secret file engine__key")
    'set BOT_MODELS__BIG__KEY or the secret file models__big__key'
    """
    if name == DEFAULT_MODEL:
        return sentence
    sentence = sentence.replace("BOT_ENGINE__", f"BOT_MODELS__{name.upper()}__")
    sentence = re.sub(r"\bengine__(?=[a-z])", f"models__{name}__", sentence)
    return re.sub(r"(?<![\w./-])engine\.(?=[a-z])", f"models.{name}.", sentence)


def _load_in_table(name: str, load: EngineLoad) -> EngineLoad:
    return load if load.fault is None else replace(load, fault=_in_table(name, load.fault))


def _error_in_table(name: str, error: EngineError) -> EngineError:
    sentence = _in_table(name, str(error))
    return error if sentence == str(error) else type(error)(sentence)
