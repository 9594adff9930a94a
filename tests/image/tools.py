"""Build and run containers: with docker, or podman and buildah, which need no daemon."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# The Dockerfile's arguments. Without a registry, the same Debian is built from its archive.
BASES = {"BASE": "python:3.11-slim-bookworm", "BUILD_BASE": "python:3.11-bookworm"}
LOCAL_BASES = {"BASE": "localhost/debian-python:bookworm", "BUILD_BASE": "localhost/debian-python-build:bookworm"}
PACKAGES = {"BASE": "python3,python3-venv,ca-certificates"}
PACKAGES["BUILD_BASE"] = PACKAGES["BASE"] + ",gcc,libc6-dev"


class ImageError(Exception):
    """A failure, as a sentence for the command line."""


def output_of(*command: str | Path, stdin: str | None = None) -> str:
    """Run a command quietly; return its standard output.

    Raises:
        ImageError: It failed; with the end of its standard error.
    """
    done = subprocess.run([str(word) for word in command], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"{' '.join(map(str, command[:3]))} … ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def find_tool() -> str:
    """Choose docker if its daemon responds, else podman.

    Raises:
        ImageError: Neither is available.
    """
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        return "docker"
    if shutil.which("podman") and shutil.which("buildah"):
        return "podman"
    raise ImageError(
        "neither a running docker nor podman with buildah was found: install one "
        "(Debian, Ubuntu: apt install buildah podman runc debootstrap)"
    )


def find_bases(tool: str) -> dict[str, str]:
    """Choose the base images: official ones if available, else built from Debian's archive."""
    return {argument: _find_base(tool, argument) for argument in BASES}


def _find_base(tool: str, argument: str) -> str:
    official, local = BASES[argument], LOCAL_BASES[argument]
    for command in (["image", "inspect", official], ["pull", "--quiet", official]):
        if subprocess.run([tool, *command], capture_output=True, check=False).returncode == 0:
            return official
    if subprocess.run([tool, "image", "inspect", local], capture_output=True, check=False).returncode:
        print(f"{official} is not available: building {local} with debootstrap", flush=True)
        _bootstrap(tool, local, PACKAGES[argument])
    return local


def _bootstrap(tool: str, image: str, packages: str) -> None:
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        raise ImageError(
            "no base image can be pulled, and building one needs debootstrap and root: name one with --base"
        )
    # Under /var: /tmp may be in memory.
    folder = Path(output_of("mktemp", "--directory", "/var/tmp/base.XXXXXX").strip())
    try:
        output_of(
            "debootstrap",
            "--variant=minbase",
            f"--include={packages}",
            "bookworm",
            folder / "root",
        )
        for inside in ("proc", "sys"):
            subprocess.run(["umount", folder / "root" / inside], capture_output=True, check=False)
        # Without package files and lists.
        output_of("tar", "--one-file-system", "--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*",
             "-C", folder / "root", "-cf", folder / "base.tar", ".")  # fmt: skip
        output_of(tool, "import", folder / "base.tar", image)
    finally:
        shutil.rmtree(folder)


def build(tool: str, bases: dict[str, str], image: str, arguments: Sequence[str]) -> None:
    """Build the Dockerfile; its output goes to standard error.

    pip's configuration of this machine (a private index, its certificate) applies to the
    build too, and is in no layer.
    """
    command = ["docker", "build"] if tool == "docker" else ["buildah", "bud", "--layers", "--format", "docker"]
    latest = image.rpartition(":")[0] + ":latest"
    command += ["--tag", image, "--tag", latest, "--build-arg", f"REVISION={revision()}"]
    for argument in (*(f"{name}={base}" for name, base in bases.items()), *arguments):
        command += ["--build-arg", argument]
    command += _pip_of_this_machine(tool)
    done = subprocess.run([*command, str(ROOT)], stdout=sys.stderr, check=False)
    if done.returncode:
        raise ImageError(f"{command[0]} ended with {done.returncode}; its output is above")


def _pip_of_this_machine(tool: str) -> list[str]:
    settings = _pip_settings()
    if not settings:
        return []
    config = ROOT / "dist" / "pip.conf"
    config.parent.mkdir(exist_ok=True)
    config.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()), encoding="utf-8")
    flags = ["--secret", f"id=pip.conf,src={config}"]
    if tool == "podman":
        # Wheel folders and certificates are local: docker's builder cannot see them, buildah can.
        flags += ["--network", "host"]
        places = {Path(word.removeprefix("file://")) for value in settings.values() for word in value.split()}
        # An index in a folder refers to files beside it.
        places = {place.parent if place.name == "simple" else place for place in places}
        for place in sorted(place for place in places if place.is_absolute() and place.exists()):
            flags += ["--volume", f"{place}:{place}:ro"]
    return flags


def _pip_settings() -> dict[str, str]:
    """Return pip's configuration here; the environment overrides files."""
    found: dict[str, str] = {}
    for line in output_of(sys.executable, "-m", "pip", "config", "list").splitlines():
        key, _, value = line.partition("=")
        found[key.strip(":").split(".")[-1]] = value.strip("'")
    return {key: found[key] for key in ("index-url", "extra-index-url", "find-links", "cert") if key in found}


def inspect(tool: str, what: str) -> dict[str, Any]:
    [found] = json.loads(output_of(tool, "inspect", what))
    return dict(found)


def revision() -> str:
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()
