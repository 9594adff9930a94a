"""`make image` builds the image; `make image-test` also tests it, hardened as in compose.yaml.

python -m tests.image [--test] [--base IMAGE] [--tag NAME] [--build-arg TORCH_INDEX=…]
"""

import argparse
import shutil
import subprocess
import sys
import time

from bot import __version__
from tests.image.tools import BASES, ROOT, ImageError, build, find_bases, find_tool, inspect, output_of
from tests.image.trial import Trial, check_contents

# Megabytes of the CPU build, torch included.
LARGEST = 1600


def lint() -> None:
    linter = shutil.which("hadolint", path=str(ROOT / ".venv" / "bin")) or shutil.which("hadolint")
    if linter is None:
        raise ImageError("hadolint is not installed: run make image-test")
    # DL3006: the base is an argument.  DL3013, DL3042: constraints.txt pins, and the cache is off by environment.
    output_of(linter, "--ignore", "DL3006", "--ignore", "DL3013", "--ignore", "DL3042", str(ROOT / "Dockerfile"))


def main() -> None:
    """Build the image; with --test lint and test it."""
    parser = argparse.ArgumentParser(description="Build the container image, and test it.")
    parser.add_argument("--test", action="store_true", help="also lint the Dockerfile and test the image")
    parser.add_argument("--base", help="base image; with a C compiler in it the CPU build is faster")
    parser.add_argument("--tag", default=f"chatglm-bot:{__version__}")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="for the Dockerfile")
    options = parser.parse_args()
    try:
        tool = find_tool()
        if options.test:
            lint()
            print("Dockerfile: hadolint has no complaints", flush=True)
        began = time.monotonic()
        bases = dict.fromkeys(BASES, options.base) if options.base else find_bases(tool)
        build(tool, bases, options.tag, options.build_arg)
        size = int(inspect(tool, options.tag)["Size"]) / 1e6
        print(f"{options.tag}: {size:,.0f} MB, built with {tool} in {time.monotonic() - began:.0f} s", flush=True)
        if options.test:
            if size > LARGEST:
                raise ImageError(f"the image is too large: {size:,.0f} MB, the limit is {LARGEST:,} MB")
            check_contents(tool, options.tag)
            Trial(tool, options.tag).run()
    except (ImageError, subprocess.TimeoutExpired) as error:
        sys.exit(f"image: {error}")


if __name__ == "__main__":
    main()
