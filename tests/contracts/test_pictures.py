"""Contract of a Store's pictures: kept with the question or the quotation that has them, read only when asked for."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from bot.domain import Answer, Attachment, Exchange, IncomingMessage, Picture
from bot.storage.base import Store
from tests.contracts.test_store import Reopened, begun, found, reopened
from tests.storage import NOON, ROOM, message

__all__ = ["reopened"]

OWN, OTHER, QUOTED = (Picture("image/jpeg", bytes([number]) * 1000, 10 + number, 20) for number in range(3))


@pytest.fixture
async def store(reopened: Reopened) -> AsyncIterator[Store]:
    async with reopened() as store:
        yield store


def seen(name: str, picture: Picture | None, *, is_quoted: bool = False) -> Attachment:
    return Attachment(name, "image/png", 5, is_picture=True, is_quoted=is_quoted, picture=picture)


async def with_pictures(store: Store, incoming: IncomingMessage, *files: Attachment) -> Exchange:
    unread = tuple(replace(file, is_picture=False, picture=None, source="7") for file in files)
    exchange = await begun(store, replace(incoming, files=unread))
    assert await store.record_files(exchange, files)
    return exchange


async def pictures(store: Store, exchange: Exchange, most: int = 4) -> list[Picture | None]:
    history = await store.history(exchange, 5, pictures=most)
    return [file.picture for file in history.now.message.files]


async def test_pictures_are_read_when_they_are_asked_for(store: Store) -> None:
    exchange = await with_pictures(store, message(1), seen("a.png", OWN), seen("b.png", OTHER))
    assert await pictures(store, exchange) == [OWN, OTHER]
    assert await pictures(store, exchange, 0) == [None, None]
    assert (await found(store, exchange)).message.files == (seen("a.png", None), seen("b.png", None))


async def test_an_edit_keeps_each_picture_of_files_alike(store: Store) -> None:
    exchange = await with_pictures(store, message(1), seen("a.png", OWN), seen("a.png", OTHER))
    files = (await found(store, exchange)).message.files
    assert await store.requeue(exchange, "another text", files) is not None
    assert await pictures(store, exchange) == [OWN, OTHER]


async def test_a_message_may_come_with_pictures(store: Store) -> None:
    exchange = await begun(store, replace(message(1), files=(seen("a.png", OWN),)))
    assert await pictures(store, exchange) == [OWN]


async def test_the_newest_exchanges_come_with_pictures(store: Store) -> None:
    for number in range(3):
        exchange = await with_pictures(store, message(number), seen("a.png", OWN))
        await store.record_answer(exchange, Answer("hi"))
    now = await begun(store, message(9))
    history = await store.history(now, 5, pictures=2)
    assert [past.message.files[0].picture for past in history.exchanges] == [None, OWN, OWN]


async def test_an_edit_keeps_the_pictures_of_the_files_that_stay(store: Store) -> None:
    files = seen("a.png", OWN), seen("b.png", OTHER), seen("c.png", QUOTED, is_quoted=True)
    exchange = await with_pictures(store, replace(message(1), quoted="it", quoted_id="77"), *files)
    kept = (await found(store, exchange)).message.files[1:]
    again = await store.requeue(exchange, "why not?", kept)
    assert again is not None
    assert await pictures(store, again) == [OTHER, QUOTED]
    again = await store.requeue(exchange, "why?", ())
    assert again is not None
    assert await pictures(store, again) == []
    again = await store.requeue(exchange)
    assert again is not None
    assert (again.message.text, again.message.files) == ("why?", ())


async def test_an_answer_made_again_has_the_pictures(store: Store) -> None:
    exchange = await with_pictures(store, message(1), seen("a.png", OWN))
    again = await store.requeue(exchange)
    assert again is not None
    assert await pictures(store, again) == [OWN]


async def test_pictures_of_a_quoted_message_go_with_it(store: Store) -> None:
    quoting = replace(message(1), quoted="my cat", quoted_id="77")
    exchange = await with_pictures(store, quoting, seen("a.png", OWN), seen("b.png", QUOTED, is_quoted=True))
    assert await pictures(store, exchange) == [OWN, QUOTED]
    await store.delete_messages(ROOM, ["77"])
    assert await pictures(store, exchange) == [OWN, None]
    # A process that still reads them may not bring them back.
    assert await store.record_files(exchange, [seen("b.png", QUOTED, is_quoted=True)])
    assert await pictures(store, exchange) == [None]


@pytest.mark.parametrize("quoted", ["my cat", None])
async def test_an_edit_of_a_quoted_message_takes_its_pictures(store: Store, quoted: str | None) -> None:
    quoting = replace(message(1), quoted=quoted, quoted_id="77")
    exchange = await with_pictures(store, quoting, seen("b.png", QUOTED, is_quoted=True))
    assert (await found(store, exchange)).message.quoted == quoted
    await store.replace_quotes(ROOM, "77", "my dog")
    assert await pictures(store, exchange) == [None]
    assert (await found(store, exchange)).message.quoted == "my dog"


async def test_an_edit_of_a_quoted_message_while_its_files_are_read_stays(store: Store) -> None:
    quoting = replace(message(1), quoted="my cat", quoted_id="77")
    exchange = await begun(store, replace(quoting, files=(Attachment("b.png", source="7", is_quoted=True),)))
    await store.replace_quotes(ROOM, "77", "my dog")
    files = seen("b.png", QUOTED, is_quoted=True), Attachment("c.txt", text="the cat's diary", is_quoted=True)
    assert await store.record_files(exchange, files)
    assert await pictures(store, exchange) == [None]
    assert (await found(store, exchange)).message.quoted == "my dog"


async def test_a_cleared_question_has_no_pictures(store: Store) -> None:
    exchange = await with_pictures(store, message(1), seen("a.png", OWN))
    await store.record_answer(exchange, Answer("hi"))
    await store.expire(NOON + timedelta(days=1))
    assert await store.find(ROOM, "1") is None or (await found(store, exchange)).message.files == ()
