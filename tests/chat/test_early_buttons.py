"""Buttons pressed before the bot has stored the id of their message."""

import asyncio
from pathlib import Path

import pytest

from bot.domain import Action, ChannelKey, Exchange, Part
from tests.harness.harness import make_harness
from tests.harness.messages import CHANNEL, MEI, a_message


@pytest.mark.parametrize("is_its", [True, False])
async def test_it_waits_for_the_id_of_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_its: bool
) -> None:
    async with make_harness(tmp_path) as harness:
        exchange = await harness.intake.accept(a_message("hello"))
        assert exchange is not None
        worker, looked = harness.exchanges.worker(exchange), asyncio.Event()
        worker.parts.append(Part())
        find = harness.store.find_by_reply

        async def find_and_tell(channel: ChannelKey, message_id: str) -> Exchange | None:
            found = await find(channel, message_id)
            looked.set()
            return found

        monkeypatch.setattr(harness.store, "find_by_reply", find_and_tell)
        pressed = asyncio.create_task(harness.intake.on_button(CHANNEL, "m1" if is_its else "m2", Action.STOP, MEI))
        await looked.wait()
        assert not pressed.done()
        await harness.exchanges.record_part(worker, 0, "m1")
        worker.parts[0].is_recorded = True
        await pressed
        assert worker.is_stopped is is_its


async def test_an_id_that_is_stored_while_it_is_looked_for_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_harness(tmp_path) as harness:
        exchange = await harness.intake.accept(a_message("hello"))
        assert exchange is not None
        worker = harness.exchanges.worker(exchange)
        worker.parts.append(Part())
        find = harness.store.find_by_reply

        async def find_too_early(channel: ChannelKey, message_id: str) -> Exchange | None:
            found = await find(channel, message_id)
            if not worker.parts[0].is_recorded:
                worker.parts[0].is_recorded = True
                await harness.exchanges.record_part(worker, 0, "m1")
            return found

        monkeypatch.setattr(harness.store, "find_by_reply", find_too_early)
        await harness.intake.on_button(CHANNEL, "m1", Action.STOP, MEI)
        assert worker.is_stopped


async def test_it_is_not_waited_for_where_nothing_is_being_sent(tmp_path: Path) -> None:
    async with make_harness(tmp_path) as harness:
        exchange = await harness.intake.accept(a_message("hello"))
        assert exchange is not None
        await harness.intake.on_button(CHANNEL, "m1", Action.STOP, MEI)
        assert not harness.exchanges.worker(exchange).is_stopped
