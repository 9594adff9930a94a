"""Encrypt texts, each thing that is deleted by itself with a key of its own."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from functools import cache
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Column, Table

KEY_SIZE = 32
_NONCE_SIZE = 12


class DamagedRow(ValueError):
    """The row does not contain what this program writes."""


class KeyMissing(DamagedRow):
    """The row's text was encrypted with a key that is deleted."""


def clean(text: str) -> str:
    """Return text that every database accepts: lone surrogates and NUL become U+FFFD.

    >>> clean("a" + chr(0))
    'a�'
    """
    if text.isascii() and "\0" not in text:  # most ids
        return text
    return (
        text.encode("utf-16-le", "surrogatepass")
        .decode("utf-16-le", "replace")
        .replace("\0", "\N{REPLACEMENT CHARACTER}")
    )


@cache
def key_columns(table: Table) -> dict[str, list[Column[Any]]]:
    """Return the columns that have numbers of keys, and the columns that are encrypted with each."""
    columns: dict[str, list[Column[Any]]] = {}
    for column in table.columns:
        if (name := column.info.get("key")) is not None:
            columns.setdefault(name, []).append(column)
    return columns


@cache
def pseudonyms(table: Table) -> dict[str, str]:
    """Return the columns that have pseudonyms, and the columns with the encrypted ids that these are of."""
    return {column.name: column.info["person"] for column in table.columns if "person" in column.info}


def numbers_in(table: Table, row: Mapping[str, Any]) -> list[int]:
    """Return the numbers of a row's keys; a damaged one is left out."""
    return [number for name in key_columns(table) if isinstance(number := row.get(name), int)]


class Cipher:
    """Encrypts the texts of one database with AES-256-GCM.

    The associated data are the database's id, the table, the column and the key's number: a
    text that was moved elsewhere, or comes from another database, cannot be decrypted.  An empty
    text stays empty, so that it needs no key.
    """

    def __init__(self, database: bytes) -> None:
        self._database = database

    def encrypt(
        self, table: Table, key_column: str, number: int, key: bytes, texts: Mapping[str, str | None]
    ) -> dict[str, Any]:
        """Return the values of encrypted columns, and of the column with the number of their key."""
        values: dict[str, Any] = {key_column: number}
        cipher = AESGCM(key)
        for name, text in texts.items():
            if not text:
                values[name] = None if text is None else b""
                continue
            nonce = secrets.token_bytes(_NONCE_SIZE)
            content = clean(text).encode()
            values[name] = nonce + cipher.encrypt(nonce, content, self.context(table, name, number))
        return values

    def decrypt(self, table: Table, row: Mapping[str, Any], keys: Mapping[int, bytes]) -> dict[str, Any]:
        """Return the columns that a row has, with the encrypted ones as text.

        A row from before the encryption has no numbers of keys, and its texts as they are.

        Raises:
            KeyMissing: `keys` lacks one of the row's.
            DamagedRow: A text cannot be decrypted.
        """
        values = dict(row)
        for key_column, columns in key_columns(table).items():
            if key_column not in row:
                continue
            number = row[key_column]
            if number is not None and not isinstance(number, int):
                raise DamagedRow(key_column)
            cipher = None
            for column in columns:
                if column.name not in row:
                    continue
                data = row[column.name]
                if not data:
                    values[column.name] = None if data is None else ""
                elif number is None:
                    values[column.name] = data.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
                else:
                    if cipher is None:
                        if number not in keys:
                            raise KeyMissing(key_column)
                        cipher = AESGCM(keys[number])
                    values[column.name] = self._decrypt(cipher, data, self.context(table, column.name, number))
        return values

    def _decrypt(self, cipher: AESGCM, data: bytes, context: bytes) -> str:
        try:
            return cipher.decrypt(data[:_NONCE_SIZE], data[_NONCE_SIZE:], context).decode()
        except (InvalidTag, ValueError) as error:
            raise DamagedRow("encrypted text") from error

    def context(self, table: Table, column: str, number: int) -> bytes:
        return self._database + f"{table.name}.{column}.{number}".encode()


def pseudonym(key: bytes, platform: str, person: str) -> str:
    """Return a name for a person that tells nothing without the key; empty for an empty id."""
    if not person:
        return ""
    digest = hmac.digest(key, clean(f"{platform}:{person}").encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest[:16]).rstrip(b"=").decode()
