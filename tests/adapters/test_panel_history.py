"""Changes of config.toml that were made in the panel: who, when and what, kept across a restart."""

import json
import re
import stat
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from bot.adapters.web.access import Right
from bot.adapters.web.adapter import HISTORY
from bot.adapters.web.panel.audit import MOST_CHANGES, audit_html
from bot.adapters.web.panel.history import MOST_KEPT, ConfigHistory
from bot.adapters.web.panel.sources import PanelSources
from bot.adapters.web.panel.usage import RecentUsage
from bot.adapters.web.panel.view import PanelView
from bot.config.changes import ValueChange
from bot.config.reload import revision_of
from bot.domain import Author, Scope
from bot.observability.health import Health
from bot.util.clock import MonotonicClock
from tests.adapters.panel_config import Configured, configured, has
from tests.adapters.test_panel import ESCAPED, HOSTILE, first
from tests.harness.messages import NOON

TEXT = '[engine]\nmodel = "first"\n\n[limits]\nrequests_per_minute = 20\n'
PORT = ValueChange("server.port", "8000", "9000")


@pytest.fixture
async def bot(tmp_path: Path) -> AsyncIterator[Configured]:
    async with configured(tmp_path, TEXT) as bot:
        yield bot


async def save(bot: Configured, text: str) -> None:
    shown = json.loads(await bot.served.panel.post("config"))
    await bot.served.panel.post("config/save", text=text, revision=shown["revision"])


def rows(audit: str) -> list[tuple[str, ...]]:
    """Return person, place, setting and value of each row."""
    found = re.findall(r"<bdi>(.*?)</bdi></td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", audit)
    return [tuple(map(unescape, each)) for each in found]


async def test_what_is_saved_in_the_panel_is_listed_with_both_values_and_survives_a_restart(
    bot: Configured, tmp_path: Path
) -> None:
    mei = Author("discord", "1", "Mei")
    await bot.served.harness.intake.choices.set(Scope("channel", "discord:5"), "temperature", mei, "0.5")
    await save(bot, TEXT.replace("requests_per_minute = 20", "requests_per_minute = 9\nmax_message_chars = 5000"))
    await bot.served.panel.post("model", name="engine", values={"quantization": "int4"})
    shown = (await bot.served.panel.until(has("audit", "engine.quantization"))).shown["audit"]
    assert sorted(rows(shown)) == [
        ("Mei (discord:1)", "discord:5", "temperature", "0.5"),
        ("console:operator", "config.toml", "engine.quantization", 'not set → "int4"'),
        ("console:operator", "config.toml", "limits.max_message_chars", "not set → 5000"),
        ("console:operator", "config.toml", "limits.requests_per_minute", "20 → 9"),
    ]
    again = [each.value.setting for each in ConfigHistory(tmp_path / HISTORY).latest(9)]
    assert again == ["engine.quantization", "limits.max_message_chars", "limits.requests_per_minute"]
    assert stat.S_IMODE((tmp_path / HISTORY).stat().st_mode) == 0o600


async def test_a_refused_save_is_not_listed(bot: Configured, tmp_path: Path) -> None:
    await bot.served.panel.post("config/save", 409, text="[enginee]\n", revision="")
    await bot.served.panel.post("model", 409, name="engine", values={"model": "missing"})
    assert "config.toml" not in (await bot.served.panel.until(first)).shown["audit"]
    assert not (tmp_path / HISTORY).exists()


async def test_a_secret_of_the_file_that_a_save_takes_out_is_not_kept(tmp_path: Path) -> None:
    async with configured(tmp_path, TEXT, {"BOT_DISCORD__TOKEN": "a-secret-token"}) as bot:
        bot.path.write_text(
            f'{TEXT}[adapters.discord]\ntoken = "another-token"\n[conversation]\nsystem_prompt = "a-secret-token"\n',
            encoding="utf-8",
        )
        await bot.served.panel.post("config/save", text=TEXT, revision=revision_of(bot.path.read_bytes()))
        shown = (await bot.served.panel.until(has("audit", "adapters.discord.token"))).shown["audit"]
    assert "-token" not in shown + (tmp_path / HISTORY).read_text(encoding="utf-8")
    assert {each[2:] for each in rows(shown)} == {
        ("adapters.discord.token", "(secret) → not set"),
        ("conversation.system_prompt", '"(secret)" → not set'),
    }


@pytest.mark.parametrize(
    ("right", "value"), [(Right.ADMIN, "the operator can read the value"), (Right.OPERATOR, "8000 → 9000")]
)
async def test_admins_see_the_setting_and_operators_its_values(bot: Configured, right: Right, value: str) -> None:
    components, clock = bot.served.components, MonotonicClock()
    sources = PanelSources(components, Health(components, 60.0, clock), clock, editor=bot.editor)
    await sources.history.record([PORT], "discord:1", NOON)
    chat: Any = SimpleNamespace(intake=bot.served.harness.intake)
    view = PanelView(chat, sources, RecentUsage(sources.read_usage, clock), str, right)
    assert rows((await view.update())["audit"]) == [("discord:1", "config.toml", "server.port", value)]


async def test_the_file_and_the_list_are_bounded_and_hostile_values_are_text(tmp_path: Path) -> None:
    path = tmp_path / HISTORY
    history = ConfigHistory(path)
    for number in range(3):
        values = [ValueChange(f"{HOSTILE}{number} {each}", "x" * 10_000, HOSTILE) for each in range(MOST_KEPT // 2)]
        await history.record(values, HOSTILE, NOON)
    again = ConfigHistory(path).latest(10_000)
    assert (len(again), again) == (MOST_KEPT, history.latest(10_000))
    assert path.stat().st_size < MOST_KEPT * 1_000
    html = audit_html([], str, in_file=again)
    assert html.count(f"→ {ESCAPED}") == MOST_CHANGES
    assert "<script" not in html


async def test_damaged_lines_and_a_file_that_cannot_be_written_cost_no_change(tmp_path: Path) -> None:
    path = tmp_path / HISTORY
    await ConfigHistory(path).record([PORT], "discord:1", NOON)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"at": "never"}\n{"at": "x", "by": "y", "setting": "z", "before": null, "after": 1}\n[\n')
    with structlog.testing.capture_logs() as lines:
        history = ConfigHistory(path)
        path.unlink()
        path.mkdir()
        await history.record([PORT], "discord:2", NOON)
        assert ConfigHistory(path).latest(9) == []
    assert [each.by for each in history.latest(9)] == ["discord:2", "discord:1"]
    assert [line["event"] for line in lines] == [
        "lines about changes of config.toml are damaged",
        "a restart loses the latest changes of config.toml",
        "earlier changes of config.toml cannot be shown",
    ]
    assert lines[0]["count"] == 3
