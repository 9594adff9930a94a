"""Texts that can be decrypted from kept copies of a SQLite database with its present keys."""

import sqlite3
from contextlib import closing
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bot.storage.encryption import Cipher, key_columns
from bot.storage.schema import metadata

_HEADER, _SLOT, _NONCE = 64, 32, 12


class KeptFiles:
    """Copies of a database and its log; not of its keys.

    A text is found by its row: each copy is opened as the database that it was.  `content` has
    every byte, for texts that were not encrypted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.content = b""
        # Each text that ever was in a row: table, column, number of the key, encrypted text.
        self._texts: set[tuple[str, str, int, bytes]] = set()

    def copy(self) -> None:
        """Keep the database as it is now."""
        for path in sorted(self._folder.glob("*.db*")):
            if not path.name.endswith((".keys", ".lock")):
                self.content += path.read_bytes()
        (database,) = self._folder.glob("*.db")
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
            for table in metadata.sorted_tables:
                for key_column, columns in key_columns(table).items():
                    for name in (column.name for column in columns):
                        query = f"SELECT {key_column}, {name} FROM {table.name} WHERE {key_column} IS NOT NULL"
                        texts = [(table.name, name, key, text) for key, text in reader.execute(query) if text]
                        self._texts.update(texts)

    def decrypted(self) -> bytes:
        """Return what the keys of now decrypt, and what was never encrypted."""
        (database,) = self._folder.glob("*.db")
        keys = database.with_name(f"{database.name}.keys").read_bytes()
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
            (id,) = reader.execute("SELECT database FROM encryption").fetchone()
        cipher, found = Cipher(id), [self.content]
        for table, column, number, text in self._texts:
            at = _HEADER + _SLOT * number
            try:
                plain = AESGCM(keys[at : at + _SLOT]).decrypt(
                    text[:_NONCE], text[_NONCE:], cipher.context(metadata.tables[table], column, number)
                )
            except InvalidTag:
                continue
            found.append(plain)
        return b"\0".join(found)
