"""Files, albums, pastes and earlier messages in a conversation: `python -m tests.adapters.demo PLATFORM --show files`.

The model is scripted: its answer lists what it was given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from bot.config.schema import ConversationSection
from bot.domain import Action, ChatRequest
from tests.harness.fakes import FastClock, ManualClock, ScriptedEngine
from tests.harness.platform_bench import Bench, open_bench
from tests.reading import makers

_CHANNEL = "general"
# Timeout for a reply on a busy machine.
_SECONDS = 60.0
# Characters at both ends of what the model was given.
_SHOWN = 110
# Of a message that an app has cut, and of the whole paste.
_PIECE, _PASTE = {"discord": 1950, "telegram": 4000, "slack": 3950}, 13_000
_LINE = "The quick brown fox jumps over the lazy dog. 敏捷的棕色狐狸跳过懒狗。\n"


def _answer(request: ChatRequest) -> str:
    given = request.messages[-1].content
    shown = given if len(given) <= 2 * _SHOWN else f"{given[:_SHOWN]}\n[…]\n{given[-_SHOWN:]}"
    return f"I was given {len(given)} characters:\n```\n{shown}\n```"


@dataclass(slots=True)
class Talk:
    """People write; `say` gets each message, a long one cut.

    On `clock` unfinished questions wait for more: it stands while parts are on their way, however slow the machine is.
    """

    bench: Bench
    say: Callable[[str], None]
    clock: ManualClock

    async def write(self, author: str, text: str, *, mention: bool = False, **facts: Any) -> str:
        """Write a message, which may have `files`; return its id."""
        platform: Any = self.bench.platform
        files = [platform.file(name, data) for name, data in facts.pop("files", {}).items()]
        named = "".join(f" [{name}]" for name in facts.pop("names", ()))
        self._tell(author, f"{'@bot ' if mention else ''}{text}{named}")
        attached: dict[str, dict[str, Any]] = {
            "discord": {"attachments": files},
            "telegram": {"attached": files[0] if files else None},
            "slack": {"files": files},
        }
        given = attached[platform.name] if files else {}
        return str(await platform.say(text, author=author, channel=_CHANNEL, mention=mention, **given, **facts))

    async def ask(self, *messages: tuple[str, dict[str, bytes]], **facts: Any) -> None:
        """Let Mei write messages of which the first mentions the bot, and wait for the one answer to all."""
        platform: Any = self.bench.platform
        if platform.name == "telegram":
            platform.now += timedelta(minutes=1)  # its clock stands
        before = {each.id for each in self.bench.replies(_CHANNEL)}
        for number, (text, files) in enumerate(messages):
            await self.write("Mei", text, mention=not number, files=files, names=files, **facts)
        if platform.name == "telegram":  # whose albums wait although they are complete
            await platform.until(lambda: not platform.pending)
            await self.clock.advance(1.0)

        def is_answered() -> bool:
            new = [each for each in self.bench.replies(_CHANNEL) if each.id not in before]
            return bool(new) and Action.RETRY in new[-1].actions

        await platform.until(is_answered, _SECONDS)
        new = [each for each in self.bench.replies(_CHANNEL) if each.id not in before]
        for reply in new:
            self._tell("bot", reply.markdown)
        self.say(f"  ({len(messages)} messages, {len(new)} answer{'s' if len(new) > 1 else ''})")

    def _tell(self, author: str, text: str) -> None:
        shown = text if len(text) <= 3 * _SHOWN or author == "bot" else f"{text[:40]} […] ({len(text)} characters)"
        self.say(f"\n{' ' * 5}".join(f"{author:<4} {shown}".splitlines()))


async def play_files(platform: str, say: Callable[[str], None]) -> None:
    """Play the conversation on one platform; `say` gets each line of the transcript."""
    engine = ScriptedEngine(default=_answer, context_length=40_000)
    async with open_bench(platform, engine, FastClock(1.0)) as bench:
        talk = Talk(bench, say, ManualClock())
        bench.intake.continuations._clock = talk.clock
        if platform == "telegram":
            bench.platform.reads_all = True  # type: ignore[attr-defined]  # privacy mode is off
        bench.intake.settings.conversation = ConversationSection(history_turns=0, catch_up_minutes=10_000_000)
        say(f"— {platform}: a PDF")
        await talk.ask(("what does it say?", {"report.pdf": makers.pdf("Revenue grew by 12 percent.")}))
        say("— a file that follows the question")
        await talk.ask(("and this one:", {}), ("", {"minutes.docx": makers.document("Tea at five. 五点喝茶。")}))
        say("— an album")
        pictures = {f"page {number}.txt": f"the words of page {number}".encode() for number in (1, 2, 3)}
        if platform == "telegram":  # which sends each of its files as a message
            one_by_one = [
                ("what is in these?" if not number else "", dict([each]))
                for number, each in enumerate(pictures.items())
            ]
            await talk.ask(*one_by_one, media_group_id="7")
        else:
            await talk.ask(("what is in these?", pictures))
        say(f"— a paste of {_PASTE:,} characters")
        await talk.ask(*((piece, {}) for piece in _pieces(platform)))
        say('— "what were they talking about?"')
        bench.intake.settings.conversation = ConversationSection(
            history_turns=0, catch_up_minutes=10_000_000, context_messages=3
        )
        await talk.write("Ben", "shall we move the release to Friday?")
        await talk.write("Ann", "yes, the tests are still red")
        await talk.ask(("what were they talking about?", {}))
    for violation in bench.platform.violations:
        say(f"not allowed on {platform}: {violation}")


def _pieces(platform: str) -> list[str]:
    """Return a paste as an app cuts it, at the ends of lines."""
    text, pieces = (_LINE * (_PASTE // len(_LINE) + 1))[:_PASTE], []
    while text:
        end = len(text) if len(text) <= _PIECE[platform] else text.rindex("\n", 0, _PIECE[platform]) + 1
        pieces.append(text[:end].strip())
        text = text[end:]
    return pieces
