"""Time `bot setup` from its start to the first answer: `python -m tests.browser.first_answer [TRIES]`.

A script presses the keys, so the figures are those of the page and the machine, without a person's time to read.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from playwright.async_api import Response, expect

from tests.browser.conftest import chromium
from tests.chaos.processes import replies, until
from tests.cli.test_main import environment
from tests.cli.test_setup import loopback_urls
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import TOKEN


async def attempt(root: Path, platform: DiscordPlatform) -> str:
    folder = root / "bot"
    folder.mkdir()
    more = {"BOT_OPERATIONS__PORT": "0", "BOT_ENGINE__BACKEND": "", "BOT_CONVERSATION__CATCH_UP_MINUTES": "10000000"}
    began = time.monotonic()
    times: dict[str, float] = {}
    loaded: list[Response] = []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bot", "setup", "--no-browser"),
        cwd=folder,
        env=environment(**loopback_urls(platform, root), **more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        while b"link=" not in (line := await process.stdout.readline()):
            assert line, "bot setup has ended"
        link = line.decode().strip()
        times["link shown"] = time.monotonic() - began
        async with chromium(link.partition("/?")[0]) as context:
            page = await context.new_page()
            page.on("response", lambda response: loaded.append(response))  # noqa: PLW0108 - Playwright marks its handlers
            opened = time.monotonic()
            await page.goto(link)
            await expect(page.locator("#form")).to_be_visible()
            times["page interactive"] = time.monotonic() - opened
            weight = sum([len(await each.body()) for each in loaded if each.request.method == "GET"])
            await page.get_by_label("Discord").check()
            await page.keyboard.insert_text(TOKEN)
            await expect(page.locator("#discord .good").first).to_contain_text("the token is valid")
            await expect(page.locator("#missing")).to_be_hidden()
            await page.get_by_role("button", name="Write these files").click()
            await page.get_by_role("button", name="Start the bot now").click()
            await expect(page.locator("#ended")).not_to_be_empty()
        await until(lambda: len(platform.identified) > 0)
        await platform.say("What can you do?")
        await platform.until(lambda: any(len(text) > 1 for text in replies(platform, "general")))
        times["first answer"] = time.monotonic() - began
    finally:
        process.kill()
        await process.wait()
    shown = ", ".join(f"{name} after {seconds:.1f} s" for name, seconds in times.items())
    return f"{shown}; {weight:,} bytes in {len(loaded)} responses"


async def main(tries: int) -> None:
    for number in range(tries):
        with tempfile.TemporaryDirectory() as root:
            async with DiscordPlatform() as platform:
                platform.channel("general")
                print(f"{number + 1} of {tries}: {await attempt(Path(root), platform)}", flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
