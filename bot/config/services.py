"""Files that run a configured bot as a service: a systemd unit, a compose file."""

import json
import os
import re
from pathlib import Path

from bot import __version__

# Of a checkout; an installed package has no Dockerfile.
CHECKOUT = Path(__file__).parents[2]
_LOOPBACK = re.compile(r"https?://(localhost\b|127\.[\d.]+|\[::1\])")

# Not ProtectHome or ProtectSystem=strict: the hub's downloads and the compiled kernels are below ~/.cache.
_HARDENED = """\
NoNewPrivileges=yes
UMask=0077
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
"""
# A user's own manager may not do these.
_OF_THE_SYSTEM = """\
CapabilityBoundingSet=
PrivateTmp=yes
ProtectSystem=full
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
"""


def systemd_unit(folder: Path, secrets: Path | None, python: str, user: str | None) -> str:
    """Return the unit of a bot configured in `folder`: for the system with `user`, else for a user's own manager."""
    # A folder that is named and missing is a mistake, with which the bot does not start.
    home = "" if secrets is None else f'Environment="BOT_SECRETS_DIR={_unit_text(str(secrets))}"\n'
    owner = f"User={user}\n" if user else ""
    words = [python, "-m", "bot", "run", "--config", str(folder / "config.toml")]
    return f"""\
# Written by `bot init`.
[Unit]
Description=Chat bot in {_unit_text(str(folder))}
Wants=network-online.target
After=network-online.target

[Service]
ExecStart={" ".join(f'"{_unit_text(word).replace("$", "$$")}"' for word in words)}
WorkingDirectory={_unit_text(str(folder))}
{home}{owner}Restart=on-failure
RestartSec=30
# A mistake in the settings: a restart does not help.
RestartPreventExitStatus=2
TimeoutStopSec=15
{_HARDENED}{_OF_THE_SYSTEM if user else ""}
[Install]
WantedBy={"multi-user.target" if user else "default.target"}
"""


def _unit_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def compose_file(folder: Path, secrets: Path | None, model: Path | None, urls: str) -> str:
    """Return a compose file that builds the image from this checkout and runs it as the present user.

    `secrets` and `model` are folders that the bot reads, `urls` has the addresses of a model server.
    """
    binds = {folder / "data": "/data", folder / "config.toml": "/etc/bot/config.toml"}
    if secrets is not None:
        binds[secrets] = "/run/secrets"
    if model is not None:
        binds[model] = str(model)
    volumes = "".join(
        f"      - {{ type: bind, source: {_yaml(str(source))}, target: {_yaml(target)}"
        f"{'' if target == '/data' else ', read_only: true'} }}\n"
        for source, target in binds.items()
    )
    # A model server on this machine's loopback is reached from its network only.
    if _LOOPBACK.search(urls):
        network = "    network_mode: host\n"
    else:
        network = '    ports: ["127.0.0.1:9464:9464"]\n    environment: { BOT_OPERATIONS__HOST: "0.0.0.0" }\n'
    return f"""\
# Written by `bot init`.  With an NVIDIA GPU: TORCH_INDEX is "", and compose.gpu.yaml is a second -f.
services:
  bot:
    image: {_yaml(f"chatglm-bot:{__version__}")}
    build:
      context: {_yaml(str(CHECKOUT))}
      args: {{ TORCH_INDEX: "https://download.pytorch.org/whl/cpu" }}
    user: "{os.getuid()}:{os.getgid()}"
    restart: unless-stopped
    stop_grace_period: 15s
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
{network}    volumes:
{volumes}"""


def _yaml(text: str) -> str:
    return json.dumps(text.replace("$", "$$"), ensure_ascii=False)
