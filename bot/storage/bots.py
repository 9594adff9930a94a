"""The bots that share a server's database, and the platforms that each of them serves: the locks that they hold."""

from collections.abc import Iterable
from contextlib import suppress

from sqlalchemy import Connection

from bot.domain import RunningBot
from bot.errors import StoreError
from bot.storage.connections import locate, migrator
from bot.storage.errors import map_errors
from bot.storage.instance_lock import LOCK_SESSION, OF_DATABASE, OF_PLATFORM

# A key's second number is shown as an unsigned one.
_HELD = """
    SELECT locks.name, activity.application_name
    FROM (SELECT name, CASE name WHEN '' THEN %(database)s ELSE %(platform)s END AS kind,
                 hashtext(current_schema() || CASE name WHEN '' THEN '' ELSE ' ' || name END) AS key
          FROM unnest(%(names)s::text[]) AS name) AS locks
    JOIN pg_locks ON locktype = 'advisory' AND granted AND objsubid = 2 AND classid = locks.kind::oid
        AND objid = (locks.key::bigint & 4294967295)::oid
    JOIN pg_stat_activity AS activity USING (pid)
    WHERE activity.datname = current_database() AND starts_with(activity.application_name, %(session)s)
"""


class SharedBots:
    """Reads which bots share a database of a server; its call blocks."""

    def __init__(self, url: str, platforms: Iterable[str]) -> None:
        self._location = locate(url)
        self._engine = migrator(self._location)
        self._names = ["", *platforms]
        self._session: Connection | None = None

    def read(self) -> list[RunningBot]:
        """Return the bots, in the order of their names.

        Raises:
            StoreError: The server cannot be reached.
        """
        wanted = {"database": OF_DATABASE, "platform": OF_PLATFORM, "names": self._names, "session": LOCK_SESSION}
        try:
            with map_errors(self._location.name):
                if self._session is None:
                    self._session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                rows = self._session.exec_driver_sql(_HELD, wanted).all()
        except StoreError:
            self.close()  # the next call opens a new session
            raise
        served: dict[str, list[str]] = {}
        for name, session in rows:
            served.setdefault(session, []).extend([name] if name else [])
        return sorted(_bot(session, tuple(sorted(names))) for session, names in served.items())

    def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            with suppress(StoreError), map_errors(self._location.name):
                session.close()


def _bot(session: str, platforms: tuple[str, ...]) -> RunningBot:
    version, _, name = session.removeprefix(LOCK_SESSION).strip().partition(" ")
    return RunningBot(name, version, platforms)
