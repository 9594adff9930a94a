"""The bot's own sentences: English as written in the code, Chinese from bot/chat/locale."""

import gettext
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, assert_never

from bot.domain import FinishReason, IncomingMessage, Queued, Thought

Language = Literal["en", "zh"]
Translate = Callable[[str], str]

_LOCALE = Path(__file__).with_name("locale")
_LANGUAGES: dict[str, Language] = {"en": "en", "zh": "zh"}
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_KANA = re.compile("[\u3040-\u30ff]")  # Japanese is written with both


def translator_for(message: IncomingMessage, setting: str) -> Translate:
    """Return the translator for the author of a message; `setting` is `conversation.language`."""
    return translator(language_for(setting, message.locale, message.text))


def gettext_noop(text: str) -> str:
    """Mark a text for the catalogues; it is translated where it is shown."""
    return text


@cache
def translator(language: str) -> Translate:
    """Load a catalogue; sentences that it lacks stay English.

    >>> translator("zh")("Stopped.")
    '已停止。'
    >>> translator("en")("Stopped.")
    'Stopped.'
    """
    if language == "en":
        return gettext.NullTranslations().gettext
    return gettext.translation("bot", _LOCALE, languages=[language]).gettext


def language_for(setting: str, locale: str | None, text: str) -> Language:
    """Choose the operator's setting, else the author's locale, else the script of the message; else English.

    >>> language_for("auto", "zh-TW", "hello"), language_for("auto", None, "你好"), language_for("en", "zh", "你好")
    ('zh', 'zh', 'en')
    """
    if setting in _LANGUAGES:
        return _LANGUAGES[setting]
    if locale:
        return _LANGUAGES.get(re.split("[-_]", locale.lower())[0], "en")
    return "zh" if _HAN.search(text) and not _KANA.search(text) else "en"


def demo_note(model: str, translate: Translate) -> str:
    """Return what to expect of the demo model; empty for any other.

    >>> demo_note("THUDM/chatglm-6b", str)
    ''
    """
    if model != "demo":
        return ""
    return translate("Demo model: 4M parameters, canned knowledge; for real weights see docs/MODELS.md")


def finish_note(reason: FinishReason, translate: Translate) -> str:
    """Return the note below an incomplete answer; empty for a complete one.

    >>> finish_note(FinishReason.CANCELLED, str), finish_note(FinishReason.STOP, str)
    ('(stopped)', '')
    """
    match reason:
        case FinishReason.CANCELLED:
            return translate("(stopped)")
        case FinishReason.LENGTH:
            return translate("(The answer was cut off here: it became too long.)")
        case FinishReason.STOP | FinishReason.ERROR:
            return ""
        case _:
            assert_never(reason)


def waiting(queued: Queued, translate: Translate) -> str:
    """Return the sentence shown while a question waits.

    >>> waiting(Queued(2, 12.3), str), waiting(Queued(3, 600), str)
    ('Waiting: number 2 in the queue, about 13 s.', 'Waiting: number 3 in the queue, about 10 min.')
    >>> waiting(Queued(1, 39.5, is_model_changing=True), str)
    'The model is being changed, about 40 s.'
    >>> waiting(Queued(1, None, is_model_changing=True), str)
    'The model is being changed.'
    """
    if queued.is_model_changing:
        if queued.wait is None:
            return translate("The model is being changed.")
        return translate("The model is being changed, about {seconds} s.").format(seconds=math.ceil(queued.wait))
    if queued.is_model_loading:
        return translate("Waiting: number {position} in the queue. The model is still loading.").format(
            position=queued.position
        )
    if queued.wait is None:
        return translate("Waiting: number {position} in the queue.").format(position=queued.position)
    if queued.wait <= 90:
        return translate("Waiting: number {position} in the queue, about {seconds} s.").format(
            position=queued.position, seconds=math.ceil(queued.wait)
        )
    return translate("Waiting: number {position} in the queue, about {minutes} min.").format(
        position=queued.position, minutes=math.ceil(queued.wait / 60)
    )


def thinking(thought: Thought, translate: Translate) -> str:
    r"""Return what is shown while the model thinks: its time, and its thoughts if they are shown, as a quotation.

    >>> thinking(Thought("", 12.3), str), thinking(Thought("2 and 2\nmake", 1), str)
    ('Thinking… 12 s', 'Thinking… 1 s\n\n> 2 and 2\n> make')
    """
    head = translate("Thinking… {seconds} s").format(seconds=int(thought.seconds))
    quoted = "\n".join(f"> {line}" for line in thought.text.strip().splitlines())
    return f"{head}\n\n{quoted}" if quoted else head
