"""The program starts without torch and names the missing package where it is needed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# An import of torch fails as it does where torch is not installed.
WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from bot.cli import main
main()
"""


def bot_without_torch(
    folder: Path, *args: str, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *args],
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
