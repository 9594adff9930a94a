"""Questions that are asked by a command: /ask, and "Ask about this" in the menu of a message.

The response to the command shows the question in its channel; the reply to it refers to that message.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import discord

from bot.adapters.discord.commands import described
from bot.adapters.discord.guests import SHOWN, is_guest
from bot.adapters.discord.parse import parse_command, without_unreadable
from bot.adapters.discord.quotes import quotation_of
from bot.adapters.discord.text import plain_text
from bot.adapters.malformed import bounded
from bot.adapters.quotation import Quotation
from bot.chat.i18n import Translate, gettext_noop, translator
from bot.chat.incoming import clean_message
from bot.domain import Attachment, ChannelKey, IncomingMessage

ASK = "ask"
ABOUT = gettext_noop("Ask about this")
_QUESTION, _FILE = "question", "file"
_STRING, _ATTACHMENT = discord.AppCommandOptionType.string.value, discord.AppCommandOptionType.attachment.value
# Characters of a question, so that the message that shows it has room for all of it.
_LONGEST = 1800
# How a message begins that shows a question.
SHOWN_QUESTION = "> 💬 **"
_MOST_SHOWN = 1990


def ask_payloads(*, with_files: bool) -> list[dict[str, Any]]:
    """Return the commands as Discord's API takes them."""
    asked = described(gettext_noop("Your question"))
    options = [{"type": _STRING, "name": _QUESTION, **asked, "required": True, "max_length": _LONGEST}]
    if with_files:
        attached = described(gettext_noop("A file that the question is about"))
        options.append({"type": _ATTACHMENT, "name": _FILE, **attached, "required": False})
    chinese = translator("zh")(ABOUT)
    return [
        {
            "type": discord.AppCommandType.chat_input.value,
            "name": ASK,
            **described(gettext_noop("Ask me a question")),
            "options": options,
        },
        {
            "type": discord.AppCommandType.message.value,
            "name": ABOUT,
            "name_localizations": {"zh-CN": chinese, "zh-TW": chinese},
        },
    ]


def asked_question(interaction: discord.Interaction, channel: ChannelKey) -> IncomingMessage:
    """Return a use of /ask as a question.

    Raises:
        One of PARSE_ERRORS: It has another form.
    """
    data: Mapping[str, Any] = interaction.data or {}
    given = {option["name"]: option["value"] for option in data["options"]}
    resolved = data.get("resolved", {}).get("attachments", {})
    files = [_file(resolved[given[_FILE]])] if _FILE in given else []
    return _question(interaction, channel, str(given[_QUESTION]), files)


def question_about(interaction: discord.Interaction, channel: ChannelKey, quoted: Quotation) -> IncomingMessage:
    """Return a submitted modal as a question about a message.

    Raises:
        One of PARSE_ERRORS: It has another form.
    """
    data: Mapping[str, Any] = interaction.data or {}
    text = next(_written(data["components"]))
    asked = _question(interaction, channel, text, quoted.files)
    return replace(asked, quoted=quoted.text or None, quoted_id=quoted.id, quotes_bot=quoted.is_bots)


def _question(
    interaction: discord.Interaction, channel: ChannelKey, text: str, files: tuple[Attachment, ...] | list[Attachment]
) -> IncomingMessage:
    used = parse_command(interaction, channel)
    address = used.reply_address if is_guest(channel) else SHOWN
    words = plain_text(bounded(text), {}, interaction.guild)
    return clean_message(replace(used, text=words, files=tuple(files), reply_address=address))


def _file(given: Mapping[str, Any]) -> Attachment:
    return Attachment(
        str(given["filename"]), str(given.get("content_type") or ""), int(given["size"]), str(given["url"])
    )


def shown_question(question: IncomingMessage) -> str:
    """Return what shows a question in its channel: its author, what it points at, its text and files."""
    name = discord.utils.escape_markdown(question.author.name)
    place = f"{question.server or '@me'}/{question.channel.thread or question.channel.channel}"
    link = f" ↩️ https://discord.com/channels/{place}/{question.quoted_id}" if question.quoted_id else ""
    files = [f"📎 {file.name}" for file in question.files if not file.is_quoted]
    lines = [f"💬 **{name}**{link}", *question.text.splitlines(), *files]
    text = "\n".join(f"> {line}" for line in lines)
    # UTF-16 units are the largest count that Discord may use.
    units = text.encode("utf-16-le")
    return text if len(units) <= 2 * _MOST_SHOWN else units[: 2 * _MOST_SHOWN].decode("utf-16-le", "ignore") + "…"


def opening_message(question: IncomingMessage) -> str | None:
    """Return the message that shows a question, if the thread of its answer was made from it: it has the thread's id."""
    thread = question.channel.thread
    if question.reply_address != SHOWN or thread is None:
        return None
    # A thread in which the question was asked is older.
    return thread if int(thread) > int(question.id) else None


def target_of(interaction: discord.Interaction, me: discord.ClientUser) -> tuple[str, Quotation]:
    """Return the id of the message whose menu was used, and the message as a quotation.

    Raises:
        One of PARSE_ERRORS: It has another form.
    """
    data: Mapping[str, Any] = interaction.data or {}
    target = str(int(data["target_id"]))
    client = interaction.client
    place: Any = client.get_partial_messageable(interaction.channel_id or 0, guild_id=interaction.guild_id)
    message = without_unreadable(
        data["resolved"]["messages"][target],
        lambda raw: discord.Message(state=client._connection, channel=place, data=raw),
    )
    return target, quotation_of(message, me)


def about_modal(target: str, translate: Translate) -> discord.ui.Modal:
    """Return the modal that asks for the question about a message."""
    title = translate(ABOUT)
    modal = discord.ui.Modal(title=title, custom_id=f"{ASK}:{target}")
    entry = discord.ui.TextInput[Any](
        custom_id=_QUESTION, style=discord.TextStyle.paragraph, required=True, max_length=_LONGEST
    )
    modal.add_item(discord.ui.Label(text=translate("Your question"), component=entry))
    # The library keeps every modal that was not stopped; uses are matched by custom_id instead.
    modal.stop()
    return modal


def target_of_modal(interaction: discord.Interaction) -> str | None:
    """Return the message that a submitted modal asks about; None if it is another modal."""
    data: Mapping[str, Any] = interaction.data or {}
    name, _, target = str(data.get("custom_id")).partition(":")
    is_its = interaction.type is discord.InteractionType.modal_submit and name == ASK
    return target if is_its and target.isascii() and target.isdecimal() else None


def _written(components: Any) -> Iterator[str]:
    """Yield what was written into the modal, in labels or in rows."""
    for component in components:
        inner = [component["component"]] if "component" in component else component.get("components", [])
        yield from _written(inner)
        if component.get("custom_id") == _QUESTION:
            yield str(component["value"])
