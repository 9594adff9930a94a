"""R9: half of all calls answered 429, Retry-After 1 to 30 s.

Calls of all kinds: logins, polls and socket tickets, sends, edits and deletes, look-ups,
responses to commands.  On Discord some limits are global, on Slack each is per method.
Of four authors, one uses a command, one asks in a direct message, one asks for a long
answer, and one then edits the question, so that a long reply becomes short.
"""

import asyncio
import json
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from bot.domain import Action, ChatRequest, Exchange, Status
from bot.util.clock import Clock
from tests.adapters.lossless_runs import asked, flowing
from tests.chaos.figure import Row, Scale
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.fakes.engine import AnswerScript
from tests.harness.platform_bench import PROFILES, Bench, open_bench, without_spaces
from tests.harness.servers.discord_gateway import MESSAGE_CONTENT
from tests.harness.servers.fault_gate import is_client_connected
from tests.harness.servers.telegram import WRITING

NAME = "R9"

# Speed-up of the bot's clock, and with it of each Retry-After.
FACTOR, SHORT_FACTOR = 100.0, 300.0
CONVERSATIONS = 80
AT_ONCE = 20
_SHARE = 0.5
_SHORTEST, _LONGEST = 1.0, 30.0
_PATIENCE = 600.0
_DELTAS = 60
# Share of Discord's 429 responses that are global.
_FOR_ALL = 0.1
# Turns of the shared event loop until calls that began before the bot read a global 429
# have arrived; later calls are violations.
_TURNS = 50

Lane = tuple[Hashable, ...]
_ALL: Lane = ("all",)


@dataclass(frozen=True, slots=True)
class Route:
    """The name of a call, and the rate limits it counts against, its own first."""

    name: str
    lanes: tuple[Lane, ...]


@dataclass
class Refuser:
    """A guard that answers half of the calls with 429, and records calls before their Retry-After."""

    route: Callable[[web.Request], Any]
    refuse: Callable[[float, bool, bool], web.Response]
    clock: Clock
    chance: random.Random
    calls: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    early: list[str] = field(default_factory=list)
    _not_before: dict[Lane, float] = field(default_factory=dict)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)

    async def __call__(self, request: web.Request) -> web.Response | None:
        route: Route = await self.route(request)
        now = self.clock.now()
        self.calls += 1
        wait = max(self._not_before.get(lane, now) for lane in route.lanes) - now
        if wait > 0:
            self.early.append(f"{route.name} {wait:.1f} s before its Retry-After")
        if self.chance.random() >= _SHARE:
            return None
        seconds = self.chance.uniform(_SHORTEST, _LONGEST)
        is_for_all = _ALL in route.lanes and self.chance.random() < _FOR_ALL
        self.refused[f"{route.name} (all)" if is_for_all else route.name] += 1
        lane = _ALL if is_for_all else route.lanes[0]
        answer = self.refuse(seconds, is_for_all, self.chance.random() < _SHARE)
        if not await is_client_connected(request):
            return answer
        until = self.clock.now() + float(answer.headers["Retry-After"])
        if _is_shared(lane):
            task = asyncio.create_task(self._close(lane, until))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        else:
            self._not_before[lane] = until
        return answer

    async def _close(self, lane: Lane, until: float) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self._not_before[lane] = max(until, self._not_before.get(lane, until))


def _is_shared(lane: Lane) -> bool:
    """Return whether calls of several channels share this limit."""
    return lane[0] in ("all", "method")


async def _discord_route(request: web.Request) -> Route:
    path = request.path.removeprefix("/api/v10/").split("/")
    match path:
        case ["channels", channel, "messages", *_] if request.method != "GET":
            name = {"POST": "send", "PATCH": "edit", "DELETE": "delete"}[request.method]
            return Route(name, (("channel", channel), _ALL))
        case ["interactions", *_]:
            # Discord's global limit does not count these.
            return Route("callback", (("path", request.path),))
        case ["webhooks", *_]:
            return Route("response", (("path", request.path),))
    return Route(f"{request.method} {path[0]}", (("path", request.method, request.path), _ALL))


def _discord_refusal(seconds: float, is_for_all: bool, is_terse: bool) -> web.Response:
    if is_for_all and is_terse:  # from Cloudflare: whole seconds, no JSON
        return web.Response(status=429, text="<html>", headers={"Retry-After": str(math.ceil(seconds))})
    body = {"message": "You are being rate limited.", "retry_after": seconds, "global": is_for_all}
    headers = {"Retry-After": str(seconds), "Via": "1.1 google"}
    return web.json_response(body, status=429, headers=headers)


async def _telegram_route(request: web.Request) -> Route:
    method = request.match_info["method"]
    form = await request.post()
    chat = str(form.get("chat_id", ""))  # a question about the server names none
    if method == "sendChatAction":
        return Route(method, (("typing", chat),))
    return Route(method, (("chat", chat) if chat and method in WRITING else ("path", method),))


def _telegram_refusal(seconds: float, is_for_all: bool, is_terse: bool) -> web.Response:
    wait = math.ceil(seconds)
    body = {"ok": False, "error_code": 429, "description": f"Too Many Requests: retry after {wait}"}
    body["parameters"] = {"retry_after": wait}
    return web.json_response(body, status=429, headers={"Retry-After": str(wait)})


async def _slack_route(request: web.Request) -> Route:
    """Return a call's limits: Slack limits a method over all channels, new messages per channel."""
    method = request.match_info.get("method")
    if method is None:
        return Route("response_url", (("path", request.path),))
    if method == "chat.postMessage":
        arguments = json.loads(await request.text())
        return Route(method, (("channel", method, arguments["channel"]),))
    return Route(method, (("method", method),))


def _slack_refusal(seconds: float, is_for_all: bool, is_terse: bool) -> web.Response:
    headers = {"Retry-After": str(math.ceil(seconds))}
    return web.json_response({"ok": False, "error": "ratelimited"}, status=429, headers=headers)


_WAYS: dict[str, tuple[Callable[[web.Request], Any], Callable[[float, bool, bool], web.Response]]] = {
    "discord": (_discord_route, _discord_refusal),
    "telegram": (_telegram_route, _telegram_refusal),
    "slack": (_slack_route, _slack_refusal),
}


@dataclass
class Outcome:
    """Results of the conversations."""

    refuser: Refuser
    conversations: int = 0
    faults: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        refused = self.refuser.refused
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(refused.items()))
        told = f"refused {refused.total()} of {self.refuser.calls} calls ({kinds}), "
        told += f"before their time {len(self.refuser.early)}, conversations {self.conversations}, "
        told += f"lost, torn or twice {len(self.faults)}, violations {len(self.violations)}"
        return told + "".join(f"; {fault}" for fault in [*self.refuser.early, *self.faults, *self.violations][:3])

    @property
    def is_kept(self) -> bool:
        return not (self.faults or self.violations)


async def outcome_of(
    name: str, conversations: int, seed: int, *, factor: float = FACTOR, call_seconds: float = 30.0
) -> Outcome:
    """Run conversations while half of the bot's calls get 429."""
    clock = FastClock(factor)
    route, refuse = _WAYS[name]
    refuser = Refuser(route, refuse, clock, random.Random(seed))
    outcome = Outcome(refuser)

    @asynccontextmanager
    async def around(platform: Any) -> AsyncIterator[None]:
        platform.gate.guard = refuser
        # With a short timeout the bot would miss the 429 of a call that it gave up.
        platform.call_seconds = call_seconds
        if platform.name == "telegram":
            platform.now = datetime.now(UTC)  # waiting messages must not be too old to be answered
        yield

    limit = PROFILES[name].format.limit

    def answer(request: ChatRequest) -> AnswerScript:
        text = _answer(asked(request), limit)
        size = 1 + len(text) // _DELTAS
        return flowing(text[at : at + size] for at in range(0, len(text), size))

    engine = ScriptedEngine(default=answer, context_length=1_000_000, max_batch_size=AT_ONCE)
    async with open_bench(name, engine, clock, around=around) as bench:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with room:
                outcome.faults += [f"{number}: {fault}" for fault in await _converse(bench, number, limit)]
            outcome.conversations += 1

        async with asyncio.TaskGroup() as tasks:
            for number in range(conversations):
                tasks.create_task(one(number))
        outcome.violations = list(bench.platform.violations)
    return outcome


def _answer(question: str, limit: int) -> str:
    """Return an answer; more than two messages if the question says "long"."""
    words = f"answer to {question}: 一些文字 and text"
    if "long" not in question:
        return words
    lines = int(2.3 * limit / 100)
    return " ".join([words, *(f"{line:04} {'more of it ' * 7}" for line in range(lines))])


async def _converse(bench: Bench, number: int, limit: int) -> list[str]:
    """Run one conversation in its own channel; return its faults."""
    channel, question = f"room{number}", f"question {number}"
    try:
        match number % 4:
            case 0:
                return await _command(bench, channel)
            case 1:
                exchange = await bench.ask(f"{question} long", channel, seconds=_PATIENCE)
                settled = bench.exchanges.finished(f"{question} short")
                await bench.platform.edit(exchange.message.id, f"{question} short")
                async with asyncio.timeout(_PATIENCE):
                    exchange = await settled
            case 2:
                channel = f"Mei{number}"
                exchange = await bench.ask(question, channel, direct=True, seconds=_PATIENCE)
            case _:
                exchange = await bench.ask(f"{question} long", channel, seconds=_PATIENCE)
    except TimeoutError:
        return ["no answer"]
    return _faults(bench, channel, exchange, _answer(exchange.message.text, limit))


def _takes_commands(platform: Any) -> bool:
    """Return whether a command reaches the bot: no platform sends one again whose session ends."""
    if platform.name != "discord":
        return True
    # Discord knows a command once the bot has registered it; a session without all intents ends soon.
    is_whole = bool(platform.identified and platform.identified[-1]["intents"] & MESSAGE_CONTENT)
    return is_whole and platform.is_connected and bool(platform.commands)


async def _command(bench: Bench, channel: str) -> list[str]:
    def answers() -> int:
        return sum("/retry" in seen.visible for seen in bench.replies(channel))

    try:
        await bench.platform.until(lambda: _takes_commands(bench.platform), _PATIENCE)
        await bench.platform.command("help", channel=channel)
        await bench.platform.until(lambda: answers() > 0, _PATIENCE)
    except TimeoutError:
        return ["no answer to a command"]
    return [] if answers() == 1 else ["a command was answered twice"]


def _faults(bench: Bench, channel: str, exchange: Exchange, answer: str) -> list[str]:
    replies = bench.replies(channel)
    found = [seen for seen in replies if seen.id in exchange.parts]
    faults = [] if exchange.status is Status.DELIVERED else [f"it is {exchange.status}"]
    text = "".join(seen.markdown for seen in found)
    if without_spaces(text) != without_spaces(answer):
        faults.append(f"it shows {len(text)} characters of {len(answer)}")
    if [seen.actions for seen in found] != [frozenset()] * (len(found) - 1) + [frozenset({Action.RETRY})]:
        faults.append("the last edit is missing")
    if len(replies) > len(found):
        faults.append(f"{len(replies) - len(found)} messages too many")
    return faults


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PROFILES:
        if scale == "full":
            outcome = await outcome_of(name, CONVERSATIONS, seed)
        else:
            outcome = await outcome_of(name, 4, seed, factor=SHORT_FACTOR)
        # Calls before their time are a rate: on a busy machine a 429 may arrive after the next call began.
        yield Row(name, str(outcome), outcome.is_kept, is_in_time=not outcome.refuser.early)
