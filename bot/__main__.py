"""`python -m bot` and `bot`: the command line."""

import os
import sys


def main() -> None:
    """Run the command line; `bot health` without loading the rest of the program."""
    # Health checks run every few seconds for as long as the bot does.
    if sys.argv[1:2] == ["health"]:
        from bot.observability.probe import run

        if (code := run(sys.argv[2:], os.environ)) is not None:
            sys.exit(code)
    from bot import cli

    cli.main()


if __name__ == "__main__":
    main()
