"""The bot's own words, in the asker's language: English as written in the code, Chinese from bot/locale."""

import gettext
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

from bot.domain import IncomingMessage

Language = Literal["en", "zh"]
Say = Callable[[str], str]

_LOCALE = Path(__file__).with_name("locale")
_LANGUAGES: dict[str, Language] = {"en": "en", "zh": "zh"}
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_KANA = re.compile("[\u3040-\u30ff]")  # Japanese is written with both


def say_to(message: IncomingMessage, setting: str) -> Say:
    """What speaks to the author of this message; `setting` is `conversation.language`."""
    return translator(language_for(setting, message.locale, message.text))


@cache
def translator(language: str) -> Say:
    """Load a catalogue; a sentence that it lacks is said in English.

    >>> translator("zh")("Stopped.")
    '已停止。'
    >>> translator("en")("Stopped.")
    'Stopped.'
    """
    if language == "en":
        return gettext.NullTranslations().gettext
    return gettext.translation("bot", _LOCALE, languages=[language]).gettext


def language_for(setting: str, locale: str | None, text: str) -> Language:
    """Choose: what the operator set, else what the asker's app says, else the script of the message.

    A locale of neither language is answered in English, and so is a script of neither.

    >>> language_for("auto", "zh-TW", "hello"), language_for("auto", None, "你好"), language_for("en", "zh", "你好")
    ('zh', 'zh', 'en')
    """
    if setting in _LANGUAGES:
        return _LANGUAGES[setting]
    if locale:
        return _LANGUAGES.get(re.split("[-_]", locale.lower())[0], "en")
    return "zh" if _HAN.search(text) and not _KANA.search(text) else "en"
