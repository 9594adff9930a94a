"""The master key: it encrypts the keys of the texts, so that these and the database are noise without it."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from bot.config.schema import StorageSection
from bot.errors import StoreMisconfigured
from bot.storage.encryption import KEY_SIZE

CHECK_SIZE = 16
_NOT_WRAPPED = bytes(CHECK_SIZE)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Wrapping:
    """Encrypts keys of one database with a master key; without one they stay as they are.

    A key is random and used once, so two blocks of AES are enough, and it keeps its size.  `check` is stored
    beside the keys and tells which master key they need.
    """

    def __init__(self, master_key: str | None, database: bytes) -> None:
        self.check = _NOT_WRAPPED
        self._cipher: Cipher[modes.ECB] | None = None
        if master_key is not None:
            self.check = _derive(master_key, b"check", database)[:CHECK_SIZE]
            # No mode that chains: it would need room for a nonce, and hides only repetitions.
            self._cipher = Cipher(algorithms.AES256(_derive(master_key, b"wrap", database)), modes.ECB())  # noqa: S305

    def wrap(self, keys: dict[int, bytes]) -> dict[int, bytes]:
        """Encrypt keys by number."""
        return keys if self._cipher is None else _each(keys, self._cipher.encryptor().update)

    def unwrap(self, keys: dict[int, bytes]) -> dict[int, bytes]:
        """Decrypt keys by number."""
        return keys if self._cipher is None else _each(keys, self._cipher.decryptor().update)


@dataclass(frozen=True, slots=True)
class MasterKeys:
    """The master key, and the one before it; None is no master key."""

    current: str | None = field(default=None, repr=False)
    old: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, section: StorageSection) -> "MasterKeys":
        """Return those of the settings."""
        keys = (section.master_key, section.old_master_key)
        return cls(*[None if each is None else each.get_secret_value() for each in keys])

    def find(self, database: bytes, check: bytes, place: str) -> Wrapping:
        """Return how the keys of a database are wrapped, by the check value that is stored with them.

        Raises:
            StoreMisconfigured: They need another master key.
        """
        for master_key in (self.current, self.old, None):
            wrapping = Wrapping(master_key, database)
            if hmac.compare_digest(wrapping.check, check):
                return wrapping
        if self.current is None and self.old is None:
            raise StoreMisconfigured(
                f"{place} is encrypted with a master key, and storage.master_key is not set: set it as before "
                "(BOT_STORAGE__MASTER_KEY); to do without one, set it as storage.old_master_key"
            )
        raise StoreMisconfigured(
            f"{place} is encrypted with another master key than storage.master_key: set the one from before; to "
            "change it, set the new one, and the one from before as storage.old_master_key"
        )

    def wanted(self, database: bytes, found: Wrapping) -> Wrapping | None:
        """Return how the keys are to be wrapped from now on; None if nothing changes."""
        wanted = Wrapping(self.current, database)
        if wanted.check != found.check:
            change = "set" if found.check == _NOT_WRAPPED else "removed" if self.current is None else "changed"
            log.info("re-encrypting the keys of the database", master_key=change)
            return wanted
        if self.old is not None:
            log.warning("storage.old_master_key is not needed any more: remove it")
        return None


NO_MASTER_KEY = MasterKeys()


def _derive(master_key: str, purpose: bytes, database: bytes) -> bytes:
    return hmac.digest(master_key.encode(), b"bot keys: " + purpose + database, hashlib.sha256)


def _each(keys: dict[int, bytes], process: Callable[[bytes], bytes]) -> dict[int, bytes]:
    data = process(b"".join(keys.values()))
    assert len(data) == len(keys) * KEY_SIZE, "a key of another size"
    return {number: data[at * KEY_SIZE : (at + 1) * KEY_SIZE] for at, number in enumerate(keys)}
