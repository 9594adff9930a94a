"""Keys are made and deleted in threads, by transactions that end at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from sqlalchemy import create_engine

from bot.storage.keys import FileKeys

THREADS = 8


def test_transactions_that_finish_at_once_make_each_key_once(tmp_path: Path) -> None:
    keys = FileKeys(tmp_path / "bot.db")
    together = Barrier(THREADS)

    def finish(_: int) -> None:
        together.wait()
        keys.finish(())

    with create_engine("sqlite://").connect() as connection, ThreadPoolExecutor(THREADS) as threads:
        keys.create(connection)
        list(threads.map(finish, range(THREADS)))
        numbers = [keys.take(connection) for _ in range(3_000)]
        found = keys.read(connection, numbers)
    keys.close()
    assert len(set(found.values())) == len(numbers)
