"""`make image` builds the image, `make image-test` tries it as well, hardened as in compose.yaml.

python -m tests.image [--test] [--base IMAGE] [--tag NAME] [--build-arg TORCH_INDEX=…]
"""

import argparse
import shutil
import subprocess
import sys
import time

from bot import __version__
from tests.image.tools import BASES, ROOT, ImageFault, build, find_bases, find_tool, inspect, told
from tests.image.trial import Trial, check_contents

# Megabytes of the CPU build, torch included.
LARGEST = 1600


def lint() -> None:
    linter = shutil.which("hadolint", path=str(ROOT / ".venv" / "bin")) or shutil.which("hadolint")
    if linter is None:
        raise ImageFault("hadolint is not installed: make image-test brings it")
    # DL3006: the base is an argument.  DL3013, DL3042: constraints.txt pins, and the cache is off by environment.
    told(linter, "--ignore", "DL3006", "--ignore", "DL3013", "--ignore", "DL3042", str(ROOT / "Dockerfile"))


def main() -> None:
    """Build, and with --test lint and try."""
    parser = argparse.ArgumentParser(description="Build the container image, and try it.")
    parser.add_argument("--test", action="store_true", help="also lint the Dockerfile and try the image")
    parser.add_argument("--base", help="the image to build on; with a C compiler in it the CPU build is faster")
    parser.add_argument("--tag", default=f"chatglm-bot:{__version__}")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="for the Dockerfile")
    options = parser.parse_args()
    try:
        tool = find_tool()
        if options.test:
            lint()
            print("Dockerfile: hadolint finds nothing", flush=True)
        began = time.monotonic()
        bases = dict.fromkeys(BASES, options.base) if options.base else find_bases(tool)
        build(tool, bases, options.tag, options.build_arg)
        size = int(inspect(tool, options.tag)["Size"]) / 1e6
        print(f"{options.tag}: {size:,.0f} MB, built with {tool} in {time.monotonic() - began:.0f} s", flush=True)
        if options.test:
            if size > LARGEST:
                raise ImageFault(f"the image has {size:,.0f} MB, and {LARGEST:,} are allowed")
            check_contents(tool, options.tag)
            Trial(tool, options.tag).run()
    except (ImageFault, subprocess.TimeoutExpired) as fault:
        sys.exit(f"image: {fault}")


if __name__ == "__main__":
    main()
