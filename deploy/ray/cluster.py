"""`make cluster`: a local Ray with two demo engines, and a bot on them that answers on this terminal.

Tokens in the environment, as for `bot run`, let it answer on platforms instead.
"""

import os
import subprocess
import sys

import click
import ray
from ray import serve

from deploy.ray.engine import app

URL = "http://127.0.0.1:8000/v1"


def main() -> None:
    """Start the engines, run the bot until it ends, and stop the engines."""
    click.echo("Starting Ray and two engines …", err=True)
    # The bot is one client for all its users, whom it limits itself.
    limits = ("BOT_LIMITS__REQUESTS_PER_MINUTE", "BOT_LIMITS__TOKENS_PER_HOUR", "BOT_LIMITS__WAITING_PER_USER")
    engine = dict.fromkeys(limits, "0") | {"OMP_NUM_THREADS": "1"}
    ray.init(log_to_driver=False, logging_level="warning", runtime_env={"env_vars": engine})
    try:
        serve.run(app({"replicas": "2", "cpus": "0.5"}))
        bot = os.environ | {"BOT_ENGINE__BACKEND": "remote", "BOT_ENGINE__URLS": URL, "BOT_ENGINE__MODEL": "demo"}
        command = [sys.executable, "-m", "bot", "run", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=bot, check=False).returncode)  # noqa: S603  # the caller's own arguments
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
