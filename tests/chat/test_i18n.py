import gettext
import string
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bot.chat.i18n import language_for, translator, translator_for
from bot.chat.locale.update import CATALOGUES, load, main, said, untranslated, update
from bot.domain import Author, ChannelKey, IncomingMessage


def placeholders(text: str) -> set[str | None]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parent.parent.name)
def test_everything_the_bot_says_is_translated_with_the_same_placeholders(path: Path) -> None:
    catalog = load(path)
    texts = set(said())
    assert texts == {str(message.id) for message in catalog if message.id}, "run `make words`"
    assert untranslated(catalog) == []
    for text in texts:
        translated = catalog[text].string
        assert isinstance(translated, str)
        assert placeholders(text) == placeholders(translated), text


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parent.parent.name)
def test_the_compiled_catalogue_is_up_to_date(path: Path) -> None:
    with path.with_suffix(".mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    for message in load(path):
        if message.id:
            assert compiled.gettext(str(message.id)) == message.string, "run `make words`"


def test_updating_twice_changes_nothing(tmp_path: Path) -> None:
    copy = tmp_path / "zh" / "LC_MESSAGES" / "bot.po"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CATALOGUES[0].read_bytes())
    update(copy)
    once = copy.read_bytes(), copy.with_suffix(".mo").read_bytes()
    assert update(copy) == []
    assert (copy.read_bytes(), copy.with_suffix(".mo").read_bytes()) == once


def test_updating_tells_what_waits_for_a_translation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "zh" / "LC_MESSAGES" / "bot.po"
    empty.parent.mkdir(parents=True)
    empty.write_text('msgid ""\nmsgstr "Content-Type: text/plain; charset=utf-8\\n"\n')
    monkeypatch.setattr("bot.chat.locale.update.CATALOGUES", [empty])
    with pytest.raises(SystemExit, match=r"wait for a translation:\n.*zh.LC_MESSAGES.bot.po: ") as caught:
        main()
    assert "bot.po: Stopped." in str(caught.value)


def test_updating_is_silent_when_all_is_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bot.chat.locale.update.CATALOGUES", [])
    main()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("setting", "locale", "text", "language"),
    [
        ("zh", "en-US", "hello", "zh"),
        ("en", "zh-CN", "你好", "en"),
        ("auto", "en-GB", "你好", "en"),
        ("auto", "zh_Hans", "hello", "zh"),
        ("auto", "fr", "你好", "en"),
        ("auto", None, "what is 你好?", "zh"),
        ("auto", "", "你好", "zh"),
        ("auto", None, "hello", "en"),
        ("auto", None, "漢字を読む", "en"),
        ("auto", None, "𠮷", "zh"),
        ("auto", None, "", "en"),
    ],
)
def test_the_setting_decides_then_the_askers_app_then_the_script(
    setting: str, locale: str | None, text: str, language: str
) -> None:
    assert language_for(setting, locale, text) == language


def test_the_bot_answers_an_author_in_the_authors_language() -> None:
    def asked(text: str) -> IncomingMessage:
        return IncomingMessage(
            "1", ChannelKey("x", "1"), Author("x", "1", "Mei"), text, datetime(2026, 1, 1, tzinfo=UTC)
        )

    assert translator_for(asked("停"), "auto")("Stopped.") == "已停止。"
    assert translator_for(asked("stop"), "auto")("Stopped.") == "Stopped."


def test_a_sentence_without_a_translation_is_said_in_english() -> None:
    assert translator("zh")("No catalogue has this.") == "No catalogue has this."
