"""A text longer than any platform sends, as a damaged event may have it, is cut before anything works on it."""

from datetime import UTC, datetime

import pytest

from bot.adapters.malformed import LONGEST_TEXT
from bot.util.aio import BackgroundTasks
from tests.harness.fakes.clock import FastClock
from tests.harness.harness import Harness
from tests.harness.platform_bench import PROFILES


@pytest.mark.parametrize("name", PROFILES)
async def test_a_text_of_a_megabyte_is_cut(name: str, harness: Harness) -> None:
    async with PROFILES[name].open() as platform, BackgroundTasks() as tasks:
        tasks.start(platform.adapter(FastClock()).run(harness.intake))
        await platform.until(lambda: PROFILES[name].is_connected(platform))
        await platform.say("x" * 1_000_000)
        await platform.until(lambda: len(platform.seen("general")) == 2)
    (stored,) = await harness.store.said_since(name, datetime.fromtimestamp(0, UTC))
    assert LONGEST_TEXT - 100 < len(stored.message.text) <= LONGEST_TEXT
