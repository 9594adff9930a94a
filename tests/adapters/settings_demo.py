"""Settings of channels in a conversation: `python -m tests.adapters.demo PLATFORM --show settings`.

The models are scripted: each answer begins with the model's name and the instructions that it got.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bot.config.schema import Config
from bot.domain import Action, ChatRequest
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.platform import Seen
from tests.harness.platform_bench import PROFILES, Bench, open_bench

_MEI, _TOM = "Mei", "Tom"
_FACTOR = 20.0
# Timeout for a reply on a busy machine.
_SECONDS = 60.0
_CONFIG: dict[str, Any] = {
    "models": {"big": {"model": "demo"}},
    "platforms": {name: {"models": ["engine", "big"]} for name in PROFILES},
    "quotas": {"user": {"answers_per_day": 20}},
}


def _answer(request: ChatRequest) -> str:
    first, last = request.messages[0], request.messages[-1]
    instructions = first.content if first.role == "system" else "no instructions"
    asked = last.content.rpartition(": ")[2]
    return f"[{request.model or 'engine'}; {instructions}] You said: {asked}"


@dataclass(slots=True)
class Conversation:
    """Two people write; `say` gets each message."""

    bench: Bench
    say: Callable[[str], None]

    async def write(
        self, author: str, text: str, channel: str = "general", thread: str | None = None, *, mention: bool = True
    ) -> str:
        """Write to the bot and wait for its reply; return the id of the message."""
        before = self._ids(channel, thread)
        self._tell(channel, author, f"@bot {text}" if mention else text)
        id = await self.bench.platform.say(text, author=author, channel=channel, thread=thread, mention=mention)
        # On Slack a mention opens the thread.
        await self._replied(channel, thread, before)
        return id

    async def command(self, author: str, text: str, channel: str = "general") -> str:
        """Use a command natively; return the reply."""
        before = self._ids(channel, None)
        self._tell(channel, author, f"/{text}")
        await self.bench.platform.command(text, author=author, channel=channel)
        return await self._replied(channel, None, before)

    async def write_to(self, author: str, other: str, text: str, thread: str, to: str) -> str:
        """Write to another person in a thread, as a reply to a message of theirs; return the id of the message."""
        platform: Any = self.bench.platform
        self._tell("general", author, f"@{other} {text}")
        if platform.name == "slack":
            text = f"<@{platform.workspace.user(other)}> {text}"
            return str(await platform.say(text, author=author, thread=thread, mention=False))
        return str(await platform.say(text, author=author, thread=thread, mention=False, reply_to=to))

    async def ask_in_thread(self, author: str, text: str, channel: str) -> str:
        """Mention the bot where that opens a thread; return the thread's name."""
        self._tell(channel, author, f"@bot {text}")
        id = await self.bench.platform.say(text, author=author, channel=channel)
        thread = id if self.bench.platform.name == "slack" else text
        await self._replied(channel, thread, set())
        return thread

    def replies(self, channel: str, thread: str | None) -> list[Seen]:
        seen = self.bench.platform.seen(channel, thread)
        return [each for each in seen if each.author == "bot" and each.markdown.strip(" …\n\u2060")]

    def _ids(self, channel: str, thread: str | None) -> set[str]:
        return {each.id for each in self.replies(channel, thread)}

    async def _replied(self, channel: str, thread: str | None, before: set[str]) -> str:
        def is_replied() -> bool:
            new = [each for each in self.replies(channel, thread) if each.id not in before]
            return bool(new) and not any(Action.STOP in each.actions for each in new)

        await self.bench.platform.until(is_replied, _SECONDS)
        new = next(each for each in self.replies(channel, thread) if each.id not in before)
        self._tell(channel, "bot", new.markdown)
        return new.markdown

    def _tell(self, channel: str, author: str, text: str) -> None:
        head = f"#{channel:<8} {author:<4} "
        self.say(f"\n{' ' * len(head)}".join(f"{head}{text}".splitlines()))


async def play_settings(platform: str, say: Callable[[str], None]) -> None:
    """Play the conversation on one platform; `say` gets each line of the transcript."""
    engine = ScriptedEngine(default=_answer, reads_names=False)
    async with open_bench(platform, engine, FastClock(_FACTOR)) as bench:
        bench.intake.settings.reconfigure(Config(**_CONFIG))
        _appoint(bench.platform)
        people = Conversation(bench, say)
        say(f"— {platform}: who does not manage the channel sets a persona")
        await people.command(_TOM, "persona set You are a parrot.")
        say("— who manages it does")
        await people.command(_MEI, "persona set You are a parrot.")
        await people.write(_TOM, "Hello")
        say("— another model in a second channel")
        await people.command(_MEI, "model big", "random")
        await people.write(_TOM, "Hello", "random")
        say("— two people in a thread: the bot answers what is for it, and what is for nobody")
        await _talk(people)
        say("— a thread for each mention")
        await _open_threads(people)
        say("— what Tom has used")
        await people.command(_TOM, "usage show")
        say("— undo")
        await people.command(_MEI, "settings temperature 0.2")
        await people.command(_MEI, "settings undo")
        await people.command(_MEI, "settings changes")
    for violation in bench.platform.violations:
        say(f"not allowed on {platform}: {violation}")


async def _talk(people: Conversation) -> None:
    platform = people.bench.platform
    if platform.name == "slack":  # the first message of a thread is in the channel
        thread = await people.write(_MEI, "What is a shell?")
    else:
        thread = "shells"
        await people.write(_MEI, "What is a shell?", thread=thread)
    before = len(people.replies("general", thread))
    asked = await people.write(_TOM, "And a kernel?", thread=thread, mention=False)
    answered = await people.write_to(_MEI, _TOM, "do you mean Linux?", thread, asked)
    await people.write_to(_TOM, _MEI, "yes", thread, answered)
    await people.write(_MEI, "The kernel of Linux, then", thread=thread, mention=False)
    people.say(f"  ({len(people.replies('general', thread)) - before} replies to the 4 messages since)")


async def _open_threads(people: Conversation) -> None:
    """Let Tom ask twice where each mention is answered in a thread that is opened for it, and once more in one of them."""
    channel = "busy"
    await people.command(_MEI, "settings answer thread", channel)
    opened = [(await people.ask_in_thread(_TOM, text, channel)) for text in ("What is a pipe?", "What is a file?")]
    await people.write(_TOM, "Is it fast?", channel, opened[0], mention=False)
    in_threads = {each.id for thread in opened for each in people.replies(channel, thread)}
    beside = {each.id for each in people.replies(channel, None)} - in_threads
    people.say(f"  (threads: {len(set(opened))}, replies in them: {len(in_threads)}, to the command: {len(beside)})")


def _appoint(platform: Any) -> None:
    """Let Mei manage both channels."""
    match platform.name:
        case "discord":
            platform.managers.add(_MEI)
        case "telegram":
            platform.administrators.add(_MEI)
            platform.group("busy").is_forum = True
        case _:
            platform.workspace.creators |= {"general": _MEI, "random": _MEI, "busy": _MEI}
