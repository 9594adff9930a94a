"""Upgrade from release 0.1.0: its database and its config.toml go on working."""

import sqlite3
from contextlib import closing
from pathlib import Path

from bot.adapters import SETTINGS
from bot.config.sources import load_config
from bot.delivery.replies import Replies
from bot.domain import ChannelKey, Status
from bot.storage import migrate
from tests.harness.fakes import FakeMessenger, FastClock
from tests.harness.fakes.messenger import ShownMessage
from tests.harness.harness import Harness, make_harness
from tests.harness.messages import CHANNEL
from tests.storage import url_of

# Both as release 0.1.0 wrote them; the database is a dump of one with an exchange in every status.
RELEASE = Path(__file__).parents[1] / "data" / "release-0.1.0"


async def statuses(harness: Harness) -> dict[str, Status]:
    channels = {"q2": ChannelKey("discord", "c2")}
    found = {}
    for number in range(1, 8):
        exchange = await harness.store.find(channels.get(f"q{number}", CHANNEL), f"q{number}")
        assert exchange is not None
        found[exchange.message.id] = exchange.status
    return found


async def test_a_database_of_the_last_release_is_migrated_and_everything_owed_is_delivered_once(
    tmp_path: Path,
) -> None:
    with closing(sqlite3.connect(tmp_path / "bot.db")) as database:
        database.executescript((RELEASE / "bot.sql").read_text(encoding="utf-8"))
    clock = FastClock(1000)
    messenger = FakeMessenger(clock)
    messenger.messages["m4"] = ShownMessage(CHANNEL, "…", frozenset(), "q4")
    messenger.messages["m5"] = ShownMessage(CHANNEL, "…", frozenset(), "q5")
    async with make_harness(tmp_path) as harness:
        assert migrate.current_revision(url_of(tmp_path / "bot.db")) == migrate.head_revision()
        async with Replies(harness.intake, messenger, clock) as replies:
            for exchange in await harness.intake.recover("discord"):
                replies.start(exchange)
            await replies.wait_idle()
            assert await harness.intake.recover("discord") == []
        assert await statuses(harness) == {
            "q1": Status.DELIVERED,
            "q2": Status.CLEARED,
            "q3": Status.FAILED,
            **dict.fromkeys(("q4", "q5", "q6", "q7"), Status.DELIVERED),
        }
        prompts = [[message.content for message in request.messages] for request in harness.engine.requests]
        assert sorted(prompts, key=len) == [
            ["Mei: another open question"],
            [
                "Mei: delivered question",
                "delivered answer",
                "Mei: answered question",
                "an answer that was not delivered",
                "Mei: open question",
            ],
        ]
    assert messenger.messages["m4"].text == "an answer that was not delivered"
    assert messenger.messages["m5"].text == "ok"
    sent = [message for id, message in messenger.messages.items() if id not in ("m4", "m5")]
    assert sorted(message.reply_to or "" for message in sent) == ["q6", "q7"]
    assert messenger.violations == []


def test_the_settings_of_the_last_release_are_valid() -> None:
    config = load_config(RELEASE / "config.toml", SETTINGS, environ={}).config
    assert config.conversation.history_turns == 100
