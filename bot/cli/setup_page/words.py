"""The page in the language of its reader."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from bot.adapters.slack.manifest import manifest
from bot.adapters.web.template import fill_page
from bot.chat.i18n import Language, Translate
from bot.cli.first_setup import program

if TYPE_CHECKING:
    from bot.engine.sizes import Machine

_STATIC = Path(__file__).with_name("static")


def page_html(language: Language, translate: Translate) -> str:
    """Return the page."""
    return fill_page(_STATIC / "setup.html", language, _words(translate), manifest=escape(manifest()))


def refusal_html(language: Language, translate: Translate) -> str:
    """Return the page for a link that was used already, or is no link."""
    text = translate(
        "This link was used already, or is not complete. Open the one that bot setup shows in the terminal; if another "
        "browser has used it, end bot setup with Ctrl-C and start it again."
    )
    return fill_page(_STATIC / "refusal.html", language, {"title": translate("Set up the bot"), "text": text})


def fits(machine: Machine | None, translate: Translate) -> list[str]:
    """Return sentences about the memory of this machine, and whether a ChatGLM-6B fits."""
    if machine is None:
        return [translate("Local models need torch, which is not installed: python -m pip install chatglm-bot")]
    lines = []
    if machine.free is not None:
        memory = translate("{device}: {free} GiB free.")
        lines.append(memory.format(device=machine.device, free=f"{machine.free / 2**30:.1f}"))
    for kind, batch in machine.batches.items():
        fitting = translate("ChatGLM-6B with quantization = {kind}: fits, {batch} answers at once.")
        failing = translate("ChatGLM-6B with quantization = {kind}: does not fit.")
        lines.append((fitting if batch else failing).format(kind=kind, batch=batch))
    if any(machine.batches.values()):
        speed = translate("How fast it answers here is not known before a benchmark: {command}")
        lines.append(speed.format(command=_benchmark(max(machine.batches, key=lambda each: machine.batches[each]))))
    return lines


def _benchmark(kind: str) -> str:
    """Return the command that measures a ChatGLM-6B with random weights, before its download."""
    from bot.engine.sizes import CHATGLM_6B as SHAPE

    sizes = f"hidden={SHAPE.hidden_size},layers={SHAPE.num_layers},heads={SHAPE.num_attention_heads}"
    more = f"inner={SHAPE.inner_hidden_size},vocab={SHAPE.vocab_size}"
    return f"{program()} bench --random {sizes},{more} --quantization {kind}"


def _words(translate: Translate) -> dict[str, str]:
    return {
        "title": translate("Set up the bot"),
        "intro": translate("Three questions, then the files are written. Nothing is written before the last step."),
        "script": translate("This page needs JavaScript."),
        "where": translate("Where will people talk to the bot?"),
        "nowhere": translate("With none of them, you chat in the browser or in the terminal."),
        "portal": translate("Developer Portal"),
        "discord_new": translate("Create an application there: New Application."),
        "discord_token": translate(
            "Under Bot, switch on Message Content Intent, press Reset Token, and copy the token."
        ),
        "botfather": translate("@BotFather"),
        "telegram_new": translate("Send /newbot to it, answer its two questions, and copy the token."),
        "slack_new": translate("Create the app from this manifest"),
        "slack_manifest": translate("Manifest of the app"),
        "copy": translate("Copy"),
        "copied": translate("Copied"),
        "slack_bot": translate("Install it to your workspace: Install App shows the bot token, xoxb-…"),
        "slack_app": translate(
            "Basic Information, App-Level Tokens: create one with the scope connections:write, xapp-…"
        ),
        "token": translate("Token"),
        "bot_token": translate("Bot token"),
        "app_token": translate("App token"),
        "asking": translate("Asking {platform} …"),
        "again": translate("Check again"),
        "unchecked": translate("Keep it without a check"),
        "discord_link": translate("Invite the bot to your server"),
        "telegram_link": translate("Open a chat with the bot"),
        "model": translate("Which model answers?"),
        "looking": translate("Looking for model servers and models on this machine …"),
        "demo": translate("The demo model: comes with the bot, answers questions about itself"),
        "served": translate("{name} on this machine"),
        "cached": translate("A model of Hugging Face that is downloaded already"),
        "folder": translate("A folder with a model"),
        "hub": translate("A model of Hugging Face, downloaded at the first start"),
        "server": translate("A model server at another address (OpenAI-compatible)"),
        "model_name": translate("Model"),
        "folder_name": translate("Folder"),
        "hub_name": translate("Name, as in THUDM/chatglm-6b"),
        "url": translate("Address, as in http://gpu1:8000/v1"),
        "key": translate("Its key; empty for none"),
        "quantization": translate("Quantization"),
        "first_fitting": translate("The first that fits into the memory"),
        "memory": translate("What fits into this machine"),
        "checking": translate("Checking …"),
        "language": translate("Language of the bot's own messages?"),
        "auto": translate("that of each user"),
        "files": translate("Files to be written"),
        "private": translate("readable by you only"),
        "settings": translate("Settings in config.toml; all others keep their defaults"),
        "defaults": translate("none: all settings keep their defaults"),
        "missing": translate("Missing so far"),
        "replaces": translate("config.toml has settings. Replace them."),
        "write": translate("Write these files"),
        "done": translate("The files are written"),
        "next": translate("Start the bot in the terminal:"),
        "start": translate("Start the bot now"),
        "later": translate("Not now"),
        "starting": translate(
            "The bot starts in the terminal in which bot setup was running. You can close this page."
        ),
        "starting_chat": translate("The bot starts in that terminal. In a few seconds the chat is there:"),
        "open_chat": translate("Open the chat"),
        "closed": translate("bot setup has ended. You can close this page."),
        "offline": translate("bot setup has ended in the terminal, and wrote nothing more. Start it again there."),
    }
