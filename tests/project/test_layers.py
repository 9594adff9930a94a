"""The program starts without torch and names the missing package where it is needed."""

import asyncio
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release.requirements import requirements
from release.sbom import closure
from tests.harness.servers.model_server import ModelServer

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What local models need.
LOCAL = {canonicalize_name(Requirement(each).name) for each in PROJECT["optional-dependencies"]["local"]}

# An import of these packages fails as it does where they are not installed.
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from bot.cli import main
main()
"""


def bot_without_torch(
    folder: Path, *args: str, stdin: str = "", absent: tuple[str, ...] = ("torch",), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.replace("{names}", repr(absent)), *args],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", **environment},
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )


def test_the_echo_backend_runs_without_torch(tmp_path: Path) -> None:
    ran = bot_without_torch(tmp_path, "run", stdin="hello 你好\n/status\n", BOT_ENGINE__BACKEND="echo")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("hello 你好\n- Model: echo")


def test_chatglm_without_torch_says_how_to_get_it(tmp_path: Path) -> None:
    ran = bot_without_torch(tmp_path, "run", stdin="hello\n")
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert "torch" in ran.stderr
    assert "pip install" in ran.stderr
    assert "Traceback" not in ran.stderr


async def test_model_servers_need_nothing_of_local_models(tmp_path: Path) -> None:
    absent = (*(name.replace("-", "_") for name in LOCAL), "transformers")
    assert {"torch", "safetensors", "sentencepiece"} <= set(absent)
    async with ModelServer(["It ", "answers."]) as server:

        async def bot(*args: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
            return await asyncio.to_thread(
                lambda: bot_without_torch(tmp_path, *args, stdin=stdin, absent=absent, **environment)
            )

        for settings in (
            {"BOT_ENGINE__BACKEND": "remote", "BOT_ENGINE__URLS": server.url},
            {"BOT_ENGINE__URLS": server.url},
        ):
            checked = await bot("check", **settings)
            assert checked.returncode == 0, checked.stdout + checked.stderr
            assert "ok model engine" in checked.stdout
            asked = await bot("ask", "hello", **settings)
            assert (asked.returncode, asked.stdout) == (0, "It answers.\n"), asked.stderr
            ran = await bot("run", stdin="hello\n/status\n", **settings)
            assert ran.returncode == 0, ran.stderr
            assert ran.stdout.startswith("It answers.\n- Model: scripted")


def test_they_can_be_installed_without_what_local_models_need() -> None:
    needed = requirements(["postgres", "transformers"])
    # Nothing is forgotten: both lists together are the default installation.
    local = PROJECT["optional-dependencies"]["local"]
    assert sorted({*needed, *local}) == sorted(
        {*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["postgres"]}
    )
    found = {canonicalize_name(name) for name in dict(closure(needed))}
    assert {"discord-py", "greenlet", "psycopg-binary"} <= found
    assert not found & (LOCAL | {"transformers"})


def test_the_image_installs_that_list_without_local_models() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert 'python3 -m release.requirements "$EXTRAS"' in dockerfile
    assert re.search(r"^ARG LOCAL=true$", dockerfile, re.MULTILINE)
