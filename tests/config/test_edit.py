"""Editing config.toml: comments stay, secrets are neither shown nor written, and a save is whole or nothing."""

import asyncio
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from bot.adapters import SETTINGS
from bot.config.edit import ConfigEditor, Draft, secret_lines, with_setting
from bot.config.reload import ConfigSource, ConfigWatcher
from bot.config.schema import EngineSection, known_settings
from bot.config.sources import LoadedConfig, load_config
from bot.config.toml import parse_toml
from bot.engine import BACKENDS
from bot.errors import ConfigError, EngineMisconfigured
from tests.harness.fakes import ManualClock

TEMPLATE = (Path(__file__).parents[2] / "config.toml").read_text(encoding="utf-8")


def editor_of(path: Path, environ: dict[str, str] | None = None) -> ConfigEditor:
    """Return an editor of a file, whose models may be anything but "missing"."""

    def load(text: str | None = None) -> LoadedConfig:
        return load_config(path if path.exists() else None, SETTINGS, BACKENDS, environ or {}, text)

    async def check_model(name: str, section: EngineSection) -> None:
        if section.model == "missing":
            raise EngineMisconfigured('engine.model = "missing": no such folder')

    watcher = ConfigWatcher(load().config, ConfigSource(path, lambda: load().config, load), ManualClock())
    return ConfigEditor(watcher, SETTINGS, check_model)


class TestSettings:
    @pytest.mark.parametrize("key", [key for key in known_settings(SETTINGS) if f"# {key[-1]} = " in TEMPLATE])
    def test_each_setting_of_the_template_is_set_and_taken_back_with_all_comments_kept(
        self, key: tuple[str, ...]
    ) -> None:
        changed = with_setting(TEMPLATE, key, "a value", SETTINGS)
        table = parse_toml(changed)
        for part in key[:-1]:
            table = table[part]
        assert table == {key[-1]: "a value"}
        assert len(changed.split("\n")) == len(TEMPLATE.split("\n"))
        # The template has a column for comments, with one exception.
        assert with_setting(changed, key, None, SETTINGS).split() == TEMPLATE.split()

    @pytest.mark.parametrize(
        ("text", "changed"),
        [
            ('engine.model = "a" # mine\n', 'engine.model = "b" # mine\n'),
            ('engine = { model = "a" }\n', 'engine = { model = "b" }\n'),
            ('[engine] # why\nmodel = """\na"""\n', '[engine] # why\nmodel = "b"\n'),
        ],
    )
    def test_other_ways_of_writing_stay(self, text: str, changed: str) -> None:
        assert with_setting(text, ("engine", "model"), "b", SETTINGS) == changed

    def test_a_line_inside_a_string_is_no_header(self) -> None:
        text = '[conversation]\nsystem_prompt = """\n[engine]\n"""\n'
        changed = parse_toml(with_setting(text, ("engine", "model"), "b", SETTINGS))
        assert changed == {"conversation": {"system_prompt": "[engine]\n"}, "engine": {"model": "b"}}

    def test_a_table_that_an_operator_named_is_changed_and_made(self) -> None:
        text = "# first\n[models.big]  # second\nurls = []\n"
        changed = with_setting(text, ("models", "big", "model"), "b", SETTINGS)
        assert changed == '# first\n[models.big]  # second\nurls = []\nmodel = "b"\n'
        assert parse_toml(with_setting(text, ("personas", "cat", "system_prompt"), "m", SETTINGS))["personas"] == {
            "cat": {"system_prompt": "m"}
        }

    def test_a_text_that_is_no_toml_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="line 1"):
            with_setting("[engine\n", ("engine", "model"), "b", SETTINGS)


class TestFile:
    def test_a_save_keeps_mode_line_ends_and_byte_order_mark(self, tmp_path: Path) -> None:
        path = tmp_path / "config.toml"
        path.write_bytes(b"\xef\xbb\xbf[engine]\r\n# mine\r\n")
        path.chmod(0o640)
        editor = editor_of(path)
        read = editor.read()
        assert read.text == "[engine]\n# mine\n"
        draft = editor.check(read.text + 'model = "demo"\n')
        saved = editor.save(draft, read.revision)
        assert path.read_bytes() == b'\xef\xbb\xbf[engine]\r\n# mine\r\nmodel = "demo"\r\n'
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert editor.read().revision == saved.revision
        assert list(tmp_path.iterdir()) == [path]

    def test_a_draft_is_checked_as_the_start_does_and_not_saved_with_mistakes(self, tmp_path: Path) -> None:
        path = tmp_path / "config.toml"
        path.write_text("[limits]\n", encoding="utf-8")
        editor = editor_of(path)
        draft = editor.check("[limits]\nrequests_per_minute = -1\n[enginee]\n")
        with pytest.raises(ConfigError) as start:
            load_config(path, SETTINGS, BACKENDS, {}, draft.text)
        assert draft.mistakes == start.value.mistakes
        with pytest.raises(ConfigError, match="2 mistakes"):
            editor.save(draft, editor.read().revision)
        assert path.read_text(encoding="utf-8") == "[limits]\n"

    def test_a_draft_tells_what_changes_now_and_what_needs_a_restart(self, tmp_path: Path) -> None:
        path = tmp_path / "config.toml"
        path.write_text("", encoding="utf-8")
        draft = editor_of(path).check('[limits]\nrequests_per_minute = 9\n[server]\nport = 9\n[engine]\nmodel = "x"\n')
        assert draft.changed == ("engine.model", "limits.requests_per_minute")
        assert draft.needs_restart == ("server.port",)

    def test_a_file_that_was_changed_meanwhile_is_not_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "config.toml"
        path.write_text("# one\n", encoding="utf-8")
        editor = editor_of(path)
        revision = editor.read().revision
        path.write_text("# two\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="changed meanwhile"):
            editor.save(Draft("# three\n"), revision)
        assert path.read_text(encoding="utf-8") == "# two\n"

    def test_a_read_only_file_is_shown_as_such_and_not_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "config.toml"
        path.write_text("", encoding="utf-8")
        editor = editor_of(path)
        assert editor.why_fixed() is None
        path.chmod(0o444)
        assert editor.why_fixed() == f"{path} is read-only"
        with pytest.raises(ConfigError, match="is read-only"):
            editor.save(Draft("# mine\n"), editor.read().revision)

    def test_a_symbolic_link_stays_one(self, tmp_path: Path) -> None:
        path, target = tmp_path / "config.toml", tmp_path / "real.toml"
        target.write_text("", encoding="utf-8")
        path.symlink_to(target)
        editor = editor_of(path)
        editor.save(Draft("# mine\n"), editor.read().revision)
        assert path.is_symlink()
        assert target.read_text(encoding="utf-8") == "# mine\n"

    async def test_a_model_that_cannot_be_loaded_is_refused_before_it_is_written(self, tmp_path: Path) -> None:
        path = tmp_path / "config.toml"
        path.write_text("", encoding="utf-8")
        editor = editor_of(path)
        draft = await asyncio.to_thread(editor.check, '[engine]\nmodel = "missing"\n')
        with pytest.raises(EngineMisconfigured, match="no such folder"):
            await editor.check_models(draft)
        await editor.check_models(replace(draft, loaded=None))


class TestSecrets:
    SECRET = "xoxb-a-secret-token"

    @pytest.mark.parametrize(
        "text",
        [
            f'[adapters.discord]\ntoken = "{SECRET}"\n',
            f'# token = "{SECRET}"\n',
            f"# it was {SECRET}\n",
            '[storage]\nurl = "postgresql://bot:pass@host/bot"\n',
            '# proxy = "http://me:pass@proxy:3128"\n',
            '[engine]\n# key = "sk-pass"\n',
            '# models.big = { model = "big", key = "sk-pass" }\n',
            '[server]\nkeys = { bot = { secret = "sha256:pass" } }\n',
        ],
    )
    def test_a_file_with_a_secret_is_not_shown_and_such_a_draft_not_saved(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "config.toml"
        path.write_text("", encoding="utf-8")
        editor = editor_of(path, {"BOT_DISCORD__TOKEN": self.SECRET})
        draft = editor.check(text)
        assert draft.mistakes
        assert "pass" not in str(draft.mistakes)
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="may have a secret") as error:
            editor.read()
        assert self.SECRET not in str(error.value)

    def test_the_template_has_none(self) -> None:
        assert secret_lines(TEMPLATE, ()) == []
