"""Generate the reference pages of docs/ from the code: `python -m release.reference`.

Two comments enclose the generated part of a page; text around them is written by hand.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
from pydantic import SecretStr

from bot.adapters import SETTINGS
from bot.cli import cli
from bot.config.schema import Config, known_settings, variable
from bot.observability.metrics import Metrics
from bot.server.openapi import PATHS

_DOCS = Path(__file__).parents[1] / "docs"
_HEAD = "| setting | default | |\n|---|---|---|"
# Pages about one section.
_PAGES = {
    "engine": "[Models](MODELS.md), [several models](MODELS.md#several-models), [model servers](MODEL_SERVERS.md)",
    "storage": "[Master key](OPERATING.md#master-key), [PostgreSQL](POSTGRESQL.md)",
    "cluster": "[Several engines, several bots](SCALING.md)",
    "files": "[Attached files](FILES.md)",
    "operations": "[Health checks and metrics](MONITORING.md)",
    "server": "[HTTP APIs](HTTP_APIS.md), [chat in the browser](WEB.md)",
    "oidc": "[Sign-in](WEB.md#from-elsewhere)",
    "embeddings": "[Embeddings](HTTP_APIS.md#embeddings)",
    "adapters.discord": "[Run the bot on Discord](DISCORD.md)",
    "adapters.telegram": "[Run the bot on Telegram](TELEGRAM.md)",
    "adapters.slack": "[Run the bot on Slack](SLACK.md)",
}


def settings() -> str:
    """Return a table for each section of config.toml."""
    found: dict[str, list[str]] = {}
    for key, field in known_settings(SETTINGS).items():
        default = field.get_default(call_default_factory=True)
        value = f"`{shown(default)}`" if default is not None else f"(`{variable(key)}`)"
        found.setdefault(".".join(key[:-1]), [_HEAD]).append(f"| `{key[-1]}` | {value} | {field.description} |")
    return "\n\n".join(
        f"**`[{name}]`** {_about(name)}{f' See {_PAGES[name]}.' if name in _PAGES else ''}\n\n" + "\n".join(rows)
        for name, rows in found.items()
    )


def shown(value: object) -> str:
    """Return a default as config.toml has it.

    >>> shown(5.0), shown("auto"), shown(())
    ('5', '"auto"', '[]')
    """
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False)


def _about(section: str) -> str:
    """Return the first line of a section's docstring."""
    kind = SETTINGS.get(section.removeprefix("adapters.")) or Config.model_fields[section].annotation
    assert kind is not None
    return (kind.__doc__ or "").strip().split("\n")[0]


def command_line() -> str:
    """Return each command of `bot` with its options."""
    return "\n\n".join(_commands("bot", cli))


def _commands(path: str, group: click.Group) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(f"{path} {name}", command)
            continue
        context = click.Context(command, info_name=f"{path} {name}")
        usage = " ".join(command.collect_usage_pieces(context))
        rows = [
            f"| `{', '.join(each.opts)}` | {(each.help or '').replace('|', chr(92) + '|')} |"
            for each in command.params
            if isinstance(each, click.Option)
        ]
        table = "\n\n" + "\n".join(["| option | |", "|---|---|", *rows]) if rows else ""
        yield f"## {path} {name}\n\n`{path} {name} {usage}`: {command.get_short_help_str(400)}{table}"


def metrics() -> str:
    """Return the counters and histograms of /metrics."""
    rows = [
        f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} | {family.documentation} |"
        for family in Metrics().registry.collect()
        if family.name.startswith("chatglm_bot")
    ]
    return "\n".join(["| metric | kind | |", "|---|---|---|", *rows])


def http() -> str:
    """Return the paths of the HTTP APIs."""
    rows = [
        f"| `{method.upper()} {path}` | {operation['summary']} |"
        for path, operations in PATHS.items()
        for method, operation in operations.items()
    ]
    return "\n".join(["| request | |", "|---|---|", *rows])


PARTS = {"SETTINGS.md": settings, "COMMAND_LINE.md": command_line, "METRICS.md": metrics, "HTTP_ROUTES.md": http}


def with_part(page: str, part: str) -> str:
    """Return a page with its generated part replaced."""
    begin, end = "<!-- generated: python -m release.reference -->", "<!-- end -->"
    assert begin in page
    return re.sub(f"{re.escape(begin)}.*{end}", lambda _: f"{begin}\n\n{part}\n\n{end}", page, flags=re.DOTALL)


def main() -> None:
    for name, part in PARTS.items():
        path = _DOCS / name
        path.write_text(with_part(path.read_text(encoding="utf-8"), part()), encoding="utf-8")


if __name__ == "__main__":
    main()
