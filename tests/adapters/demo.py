"""`python -m tests.adapters.demo PLATFORM [--engine remote] [--show settings|files|forms]`: a conversation on a loopback server.

The demo model answers; with `--engine remote` two model servers have it, which think first, and one is killed in the middle of
an answer.  `--show settings` is another conversation, about personas, models and quotas of channels;
`--show files` one about files, long pastes and what was said before a question, `--show forms` one in the forms that only this
platform has.
"""

import argparse
import asyncio
import logging
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from bot.config.schema import EngineSection
from bot.domain import Action, SamplingParams
from bot.engine import open_engine
from bot.engine.backends.remote import RemoteEngine
from tests.adapters.files_demo import play_files
from tests.adapters.forms_demo import play_forms
from tests.adapters.settings_demo import play_settings
from tests.harness.fakes import FastClock
from tests.harness.platform import Seen
from tests.harness.platform_bench import PROFILES, Bench, open_bench
from tests.harness.servers.engine_server import answers_of
from tests.harness.servers.model_server import ModelServer

# At this speed of the clock even the demo model's answers, which take seconds, are seen to grow.
FACTOR = 20.0
LONG = "Tell me everything about this bot"
# Of the model servers; users must not see it.
THOUGHT = "They want to hear about this bot, so I list what it does. "
_PERSON, _CHANNEL = "Mei", "general"
_BUTTONS = {Action.STOP: "[Stop]", Action.RETRY: "[Regenerate]"}
_WIDTH = 72
# Timeout for an answer on a busy machine.
_SECONDS = 60.0


@dataclass(slots=True)
class DemoUser:
    """A user's actions, and a transcript of new and changed messages."""

    bench: Bench
    say: Callable[[str], None]
    _shown: dict[str, Seen] = field(default_factory=dict)
    _first: str | None = None

    async def ask(self, text: str) -> str:
        """Mention the bot and wait for the whole answer; return the question's id."""
        before = self._replies()
        id = await self._question(text)
        await self._until(lambda: self._is_answered(before))
        return id

    async def ask_and(self, text: str, act: Callable[[str], Awaitable[None]]) -> None:
        """Mention the bot, and call `act` with the reply's id once part of the answer is visible."""
        before = self._replies()
        await self._question(text)

        def is_long() -> bool:
            return any(len(seen.markdown) > _WIDTH for seen in self._new(before))

        await self._until(is_long)
        await act(self._new(before)[-1].id)
        await self._until(lambda: self._is_answered(before))

    async def stop(self, reply: str) -> None:
        self.say(f"{_PERSON} presses Stop")
        await self.bench.platform.press(reply, Action.STOP, author=_PERSON)

    async def edit(self, id: str, text: str) -> None:
        """Edit the last question and wait for its new reply."""
        reply = self.bench.replies(_CHANNEL)[-1]
        self.say(f"{_PERSON} edits the question")
        await self.bench.platform.edit(id, text)

        def is_answered_anew() -> bool:
            now = next(seen for seen in self.bench.replies(_CHANNEL) if seen.id == reply.id)
            return now.markdown != reply.markdown and Action.RETRY in now.actions

        await self._until(is_answered_anew)

    async def command(self, name: str) -> None:
        before = self._replies()
        self.say(f"{_PERSON} uses the command {name}")
        await self.bench.platform.command(name, author=_PERSON, channel=_CHANNEL)
        await self._until(lambda: any(seen.markdown.strip(" …") for seen in self._new(before)))

    def start_conversation(self) -> None:
        """Write the next message outside the current thread."""
        self._first = None

    def show_all(self) -> None:
        for seen in self.bench.platform.seen(_CHANNEL):
            self._show(seen, in_full=True)

    async def _question(self, text: str) -> str:
        # On Slack each mention opens a thread, which contains the conversation.
        thread = self._first if self.bench.platform.name == "slack" else None
        id = await self.bench.platform.say(text, author=_PERSON, channel=_CHANNEL, thread=thread)
        self._first = self._first or id
        return id

    async def _until(self, is_so: Callable[[], bool]) -> None:
        def looked() -> bool:
            self._look()
            return is_so()

        await self.bench.platform.until(looked, _SECONDS)

    def _look(self) -> None:
        now = {seen.id: seen for seen in self.bench.platform.seen(_CHANNEL)}
        for id, seen in now.items():
            if self._shown.get(id) != seen:
                self._show(seen, in_full=Action.STOP not in seen.actions, is_edit=id in self._shown)
        for id in self._shown.keys() - now.keys():
            self._show(self._shown[id], mark="deleted")
        self._shown = now

    def _show(self, seen: Seen, *, in_full: bool = False, is_edit: bool = False, mark: str = "") -> None:
        text = re.sub(r"<@\w+>|@glm_bot", "@bot", seen.markdown)
        if not in_full and len(text) > _WIDTH:
            text = f"… {text[-_WIDTH:]}  ({len(text)} characters)".replace("\n", " ")
        buttons = " ".join(_BUTTONS[action] for action in sorted(seen.actions))
        head = f"{seen.author:<4} {mark or ('edited' if is_edit else ''):<7} "
        lines = [*text.split("\n"), *([buttons] if buttons else [])]
        self.say(f"\n{' ' * len(head)}".join([f"{head}{lines[0]}", *lines[1:]]))

    def _replies(self) -> set[str]:
        return {seen.id for seen in self.bench.replies(_CHANNEL)}

    def _new(self, before: set[str]) -> list[Seen]:
        return [seen for seen in self.bench.replies(_CHANNEL) if seen.id not in before]

    def _is_answered(self, before: set[str]) -> bool:
        return any(Action.RETRY in seen.actions for seen in self._new(before))


async def play(platform: str, say: Callable[[str], None]) -> None:
    """Play the conversation on one platform; `say` gets each line of the transcript."""
    engine = open_engine(EngineSection())
    # Greedy decoding, so that the answers are the same each time.
    async with open_bench(platform, engine, FastClock(FACTOR), SamplingParams(temperature=0)) as bench:
        person = DemoUser(bench, say)
        say(f"— {platform}: a mention")
        await person.ask("Hello")
        say("— a follow-up")
        await person.ask("What did I just say?")
        say("— the conversation is forgotten")
        await person.command("clear")
        person.start_conversation()
        await person.ask("What did I just say?")
        say("— a long answer, stopped")
        await person.ask_and(LONG, person.stop)
        say("— a question that is edited")
        id = await person.ask("say blue whale")
        await person.edit(id, "say red panda")
        say("— the final messages")
        person.show_all()
    for violation in bench.platform.violations:
        say(f"not allowed on {platform}: {violation}")


async def play_remote(platform: str, say: Callable[[str], None], *, is_killed: bool = True) -> None:
    """Play with two model servers; unless `is_killed` is false, one is killed in the middle of an answer."""
    clock = FastClock(FACTOR)
    async with (
        open_engine(EngineSection()) as engine,
        ModelServer(owner="vllm") as one,
        ModelServer(owner="vllm") as two,
    ):
        one.default = two.default = answers_of(engine, THOUGHT)
        section = EngineSection(
            backend="remote", urls=(one.url, two.url), model="served", context_length=engine.info.context_length
        )
        async with open_bench(platform, RemoteEngine(section, clock), clock, SamplingParams(temperature=0)) as bench:
            person = DemoUser(bench, say)

            async def kill(reply: str) -> None:
                if is_killed:
                    say("— its model server is killed")
                    await one.kill()
                one.go_on.set()

            say(f"— {platform}: a mention")
            await person.ask("Hello")
            say("— a long answer")
            one.then(answers_of(engine, THOUGHT, stop_after=2 * _WIDTH))
            one.go_on.clear()
            await person.ask_and(LONG, kill)
            say("— a follow-up")
            await person.ask("What did I just say?")
            say("— the final messages")
            person.show_all()
        say(
            f"— answers continued by the other server: {sum(body['messages'][-1]['role'] == 'assistant' for body in two.bodies)}"
        )
    for violation in bench.platform.violations:
        say(f"not allowed on {platform}: {violation}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.adapters.demo", description=__doc__)
    parser.add_argument("platform", choices=list(PROFILES))
    parser.add_argument("--engine", choices=["direct", "remote"], default="direct")
    parser.add_argument("--show", choices=["answers", "files", "forms", "settings"], default="answers")
    options = parser.parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    shown = play_remote if options.engine == "remote" else play
    shown = {"files": play_files, "forms": play_forms, "settings": play_settings}.get(options.show, shown)
    asyncio.run(shown(options.platform, _say))


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # the output of a command


if __name__ == "__main__":
    main()
