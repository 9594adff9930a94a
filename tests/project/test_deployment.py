"""compose.yaml, the Kubernetes manifest and the Dockerfile name settings and files that there are."""

import re
import textwrap
from pathlib import Path

from bot.adapters import SETTINGS
from bot.config.schema import known_settings, secret_file, variable
from bot.config.secrets import is_secret
from bot.config.sources import load_config
from bot.engine import BACKENDS

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")
MANIFEST = (ROOT / "docs" / "kubernetes.yaml").read_text(encoding="utf-8")
KNOWN = known_settings(SETTINGS)


def test_the_secrets_of_compose_are_those_that_the_bot_reads() -> None:
    needed = {secret_file(("adapters", name, token)) for name, each in SETTINGS.items() for token in each.tokens}
    known = {secret_file(key) for key, field in KNOWN.items() if is_secret(field)}
    named = set(re.findall(r"secrets/(\w+)", COMPOSE))

    assert named == needed
    assert named <= known
    assert set(re.findall(r"^      - (\w+__\w+)$", COMPOSE, re.MULTILINE)) == named


def test_the_variables_of_compose_and_manifest_are_settings() -> None:
    settings = {variable(key) for key in KNOWN}
    for text in (COMPOSE, MANIFEST):
        assert set(re.findall(r"\bBOT_\w+", text)) <= settings


def test_the_settings_in_the_manifest_are_valid(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    inside = MANIFEST.partition("config.toml: |\n")[2].partition("\n---")[0]
    config.write_text(textwrap.dedent(inside), encoding="utf-8")

    loaded = load_config(config, SETTINGS, BACKENDS)

    assert loaded.config.engine.quantization == "int4"
    assert loaded.config.operations.host == "0.0.0.0"


def test_files_copied_into_the_image_exist_and_pass_dockerignore() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert source == "." or f"!{source.split('/')[0]}" in allowed, source


def test_image_compose_and_manifest_use_the_same_port_and_user() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    port = str(KNOWN["operations", "port"].default)
    for text in (dockerfile, COMPOSE, MANIFEST):
        assert port in text
        assert "10001" in text
