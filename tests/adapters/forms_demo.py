"""Each platform's own forms of questions and answers: `python -m tests.adapters.demo PLATFORM --show forms`.

Shown are the calls of the bot that change what people see, and the messages in the end.  The model is scripted.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bot.adapters.discord.ask import ABOUT
from bot.config.schema import FeedbackSection
from bot.domain import Action
from tests.harness import slack_harness, telegram_harness
from tests.harness.discord_harness import run_discord_bot
from tests.harness.harness import Harness, make_harness
from tests.harness.platform import LoopbackPlatform
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.slack import AskingInChats
from tests.harness.servers.telegram import TelegramPlatform

ANSWER = "The first two primes:\n\n| n | prime |\n|---|---|\n| 1 | 2 |\n| 2 | 3 |\n\nEuler found $e^{i\\pi}+1=0$.\n"
_HALF = "Once upon a time"
_ELSEWHERE = "elsewhere"
_BUTTONS = {Action.STOP: "[Stop]", Action.RETRY: "[Regenerate]", Action.UP: "[👍]", Action.DOWN: "[👎]"}
# Methods that only keep the connection, or ask for facts.
_SILENT = {"apps.connections.open", "auth.test", "users.info", "conversations.replies", "conversations.history"}
_SILENT |= {"getMe", "getUpdates", "deleteWebhook", "setMyCommands", "getWebhookInfo", "getChat", "getChatMember"}

Say = Callable[[str], None]


async def play_forms(platform: str, say: Say) -> None:
    """Play the conversation on one platform; `say` gets each line of the transcript."""
    with tempfile.TemporaryDirectory() as folder:
        await _PLAYS[platform](Path(folder), say)


def _show(platform: LoopbackPlatform, say: Say, channel: str = "general") -> None:
    for seen in platform.seen(channel):
        buttons = " ".join(text for action, text in _BUTTONS.items() if action in seen.actions)
        lines = [line for line in (*seen.markdown.strip().splitlines(), buttons) if line]
        say(f"\n{' ' * 5}".join([f"{seen.author:<4} {lines[0] if lines else '(empty)'}", *lines[1:]]))
    for violation in platform.violations:
        say(f"not allowed on {platform.name}: {violation}")


async def _ended(platform: LoopbackPlatform, channel: str = "general") -> None:
    """Wait until the last message of a channel is a complete answer of the bot."""

    def has_ended() -> bool:
        seen = platform.seen(channel)[-1:]
        return bool(seen) and seen[0].author == "bot" and seen[0].visible != "…" and Action.RETRY in seen[0].actions

    await platform.until(has_ended)


async def _on_discord(folder: Path, say: Say) -> None:
    async with DiscordPlatform() as platform:
        platform.channel("general")
        async with run_discord_bot(platform, folder) as bot:
            bot.harness.settings.feedback = FeedbackSection(enabled=True)
            bot.engine.add(ANSWER, "Yes, most of it.", "Yes, it works here too.")
            say("— /ask")
            await platform.command("ask which primes?")
            await _ended(platform)
            say("— Mei likes the answer")
            await platform.press(platform.seen()[-1].id, Action.UP)
            await platform.until(lambda: platform.seen()[-1].markdown.startswith("Saved"))
            say('— "Ask about this", in the menu of a message')
            said = await platform.say("tea is green", mention=False, author="Jo")
            await platform.open_menu(ABOUT, said)
            await platform.until(lambda: bool(platform.modals))
            await platform.submit({"question": "is it?"})
            await _ended(platform)
            _show(platform, say)
            say("— where the bot is no member: an app that Mei installed for herself")
            await platform.command("ask do you work here?", channel=_ELSEWHERE, guest="chat")
            await _ended(platform, _ELSEWHERE)
            _show(platform, say, _ELSEWHERE)


async def _on_telegram(folder: Path, say: Say) -> None:
    async with TelegramPlatform(knows="blocks", drafts=True) as telegram, _harness(folder) as harness:
        harness.engine.add([_HALF, asyncio.Event()], ANSWER, "Four.", "Here I am.")
        async with telegram_harness.running(telegram, harness):
            mei = telegram.private("Mei").id
            say("— a private chat: a draft grows, and its button stops it")
            await telegram.say("tell me a story", direct=True)
            await telegram.until(lambda: telegram.drafts.get(mei, [])[-1:] == [_HALF])
            say(f"     draft: {telegram.drafts[mei][-1]} [Stop]")
            telegram.stop_draft("Mei")
            await _ended(telegram, "Mei")
            _show(telegram, say, "Mei")
            say("— a group: a table and a formula in a rich message, and a vote")
            await telegram.say("which primes?")
            await _ended(telegram)
            await telegram.press(telegram.seen()[-1].id, Action.UP)
            await telegram.until(lambda: any(telegram.answers.values()))
            _show(telegram, say)
            say(f"     {next(answer for answer in telegram.answers.values() if answer)}")
            say("— where the bot is no member: guest mode")
            telegram.guest("2 + 2?", channel=_ELSEWHERE)
            await telegram.until(lambda: [seen.visible for seen in telegram.seen(_ELSEWHERE)][-1:] == ["Four."])
            _show(telegram, say, _ELSEWHERE)
            say("— any chat: the name of the bot and a few words")
            query = telegram.write_inline("what is a monad?")
            await telegram.until(lambda: query in telegram.inline_answers)
            say(f"     button: {telegram.inline_answers[query]['button']['text']}")
    _tell_calls(say, [name for name, _ in telegram.calls])


async def _on_slack(folder: Path, say: Say) -> None:
    async with AskingInChats() as server, _harness(folder) as harness:
        harness.engine.add([_HALF, asyncio.Event()], ANSWER)
        async with slack_harness.running(harness, server):
            say("— Mei opens the chat with the app")
            server.open_chat()
            await server.until(lambda: bool(server.agents.prompts))
            for prompt in server.agents.prompts[-1]["prompts"]:
                say(f"     suggested: {prompt['title']}")
            say("— a stream grows, and Slack's Stop ends it")
            await server.say("tell me a story", channel="Mei")
            await server.until(lambda: any(_HALF[:8] in seen.markdown for seen in server.seen("Mei")))
            ((_, state),) = server.agents.sessions.items()
            say(f"     chat {next(iter(server.agents.titles.values()))!r}: {state}")
            await server.stop_session(server.seen("Mei")[-1].id)
            await _ended(server, "Mei")
            _show(server, say, "Mei")
            say("— another chat: a whole answer, and a vote")
            await server.say("which primes?", channel="Ann")
            await _ended(server, "Ann")
            await server.press(server.seen("Ann")[-1].id, Action.UP, author="Ann")
            await server.until(lambda: server.seen("Ann")[-1].markdown.startswith("Saved"))
            _show(server, say, "Ann")
    _tell_calls(say, server.calls)


@asynccontextmanager
async def _harness(folder: Path) -> AsyncIterator[Harness]:
    async with make_harness(folder) as harness:
        harness.settings.feedback = FeedbackSection(enabled=True)
        yield harness


def _tell_calls(say: Say, names: Any) -> None:
    told = dict.fromkeys(name for name in names if name not in _SILENT)
    say(f"— methods called: {', '.join(told)}")


_PLAYS = {"discord": _on_discord, "telegram": _on_telegram, "slack": _on_slack}
