"""The examples on the page about model servers are valid settings."""

from pathlib import Path

import pytest

from bot.config.sources import load_config
from bot.engine import preflight
from tests.project.snippets import snippets

EXAMPLES = snippets("MODEL_SERVERS.md", "toml")


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_settings_pass_the_preflight(number: int, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(EXAMPLES[number], encoding="utf-8")
    section = load_config(file, {}, environ={}).config.engine
    assert section.backend == "remote"
    preflight(section)
