"""What somebody could still read who kept every copy of a SQLite database, and has its keys of now."""

import sqlite3
from contextlib import closing
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bot.storage.encryption import Cipher, key_columns
from bot.storage.schema import exchanges

_HEADER, _SLOT, _NONCE = 64, 32, 12


class KeptFiles:
    """Copies of a database and its log; not of its keys.

    A text is found by its row: each copy is opened as the database that it was.  `content` has
    every byte, for texts that were not encrypted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.content = b""
        # Each text that ever was in a row: column, number of the key, encrypted text.
        self._texts: set[tuple[str, int, bytes]] = set()

    def copy(self) -> None:
        """Keep the database as it is now."""
        for path in sorted(self._folder.glob("*.db*")):
            if not path.name.endswith((".keys", ".lock")):
                self.content += path.read_bytes()
        (database,) = self._folder.glob("*.db")
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
            for key_column, columns in key_columns(exchanges).items():
                for column in columns:
                    query = f"SELECT {key_column}, {column.name} FROM exchanges WHERE {key_column} IS NOT NULL"
                    self._texts.update((column.name, key, text) for key, text in reader.execute(query) if text)

    def decrypted(self) -> bytes:
        """Return what the keys of now decrypt, and what was never encrypted."""
        (database,) = self._folder.glob("*.db")
        keys = database.with_name(f"{database.name}.keys").read_bytes()
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
            (id,) = reader.execute("SELECT database FROM encryption").fetchone()
        cipher, found = Cipher(id), [self.content]
        for column, number, text in self._texts:
            at = _HEADER + _SLOT * number
            try:
                plain = AESGCM(keys[at : at + _SLOT]).decrypt(
                    text[:_NONCE], text[_NONCE:], cipher.context(exchanges, column, number)
                )
            except InvalidTag:
                continue
            found.append(plain)
        return b"\0".join(found)
