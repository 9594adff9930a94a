"""The wheel contains everything that the program needs, and runs from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=600)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def bot(site: Path, folder: Path, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BOT_")}
    return subprocess.run(
        [sys.executable, "-m", "bot", *args],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(site)},
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )


def test_it_answers_with_the_demo_model_in_an_empty_folder(unpacked: Path, tmp_path: Path) -> None:
    ran = bot(unpacked, tmp_path, "run", stdin="hello\n你好\n/status\n")
    assert ran.returncode == 0, ran.stderr
    assert "- Model: demo" in ran.stdout
    assert (tmp_path / "data" / "bot.db").exists()


def test_it_measures_a_model(unpacked: Path, tmp_path: Path) -> None:
    sizes = "hidden=32,layers=2,heads=2,inner=64,vocab=64"
    ran = bot(unpacked, tmp_path, "bench", "--random", sizes, "--prompt", "5", "--tokens", "3", "--repeat", "1")
    assert ran.returncode == 0, ran.stderr
    assert "engine, 8 clients" in ran.stdout


def test_it_contains_licence_catalogues_and_migrations_and_no_tests(unpacked: Path) -> None:
    assert list(unpacked.glob("*.dist-info/licenses/LICENSE"))
    assert (unpacked / "bot/chat/locale/zh/LC_MESSAGES/bot.mo").exists()
    assert list((unpacked / "bot/storage/migrations/versions").glob("*.py"))
    for there, here in (
        ("bot/config/template.toml", "config.toml"),
        ("bot/constraints.txt", "constraints.txt"),
        ("bot/adapters/slack/manifest.yaml", "docs/slack-manifest.yaml"),
    ):
        assert (unpacked / there).read_bytes() == (ROOT / here).read_bytes()
    for page in ("adapters/web/static/chat.html", "adapters/web/static/panel.html", "cli/setup_page/static/setup.html"):
        assert (unpacked / "bot" / page).exists()
    assert {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"} == {"bot"}
