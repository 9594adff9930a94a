"""The one tree of errors.

    BotError
    ├── ConfigError             mistakes in config.toml or the environment
    ├── EngineError
    │   ├── EngineUnavailable   it cannot start: a package or a device is missing
    │   │   └── EngineMisconfigured  a setting of the model is wrong
    │   ├── CheckpointError     a model folder that cannot be used
    │   ├── EngineBusy          the queue is full
    │   ├── PromptTooLong       the messages do not fit the model's context
    │   ├── PicturesRefused     the model takes fewer pictures, or none
    │   └── EngineFailed        this request died; others live
    │       └── AnswerBrokenOff after its first text; the rest cannot be had
    ├── StoreError              the database cannot be used
    │   ├── StoreInUse          by another bot: one at a time
    │   ├── StoreDamaged        its pages cannot be read: only a backup helps
    │   ├── StoreLost           its files were deleted or replaced under the running bot
    │   └── StoreMisconfigured  the settings have another master key
    ├── NotErased               deleted from every row, but still in the database's files
    ├── ClaimLost               another worker has claimed the exchange
    ├── AddressUnavailable      an HTTP server cannot listen on its address
    └── PlatformError
        ├── LoginRefused        a wrong token: this platform cannot go on
        ├── PlatformUnavailable a temporary fault: retry
        ├── RateLimited         retry after the platform's delay
        ├── MarkupRefused       send the same text without markup
        ├── ContentRefused      the platform's filter refuses this text
        ├── MessageGone         the message to edit was deleted
        ├── EditRefused         the message exists, but may not be edited any more
        ├── AccessDenied        no permission to write in the channel now; it may come back
        ├── ThreadRefused       no thread can be opened for an answer: the channel gets it
        ├── ReplyFull           the platform takes no further message of this reply
        └── ChannelGone         the channel cannot be written to any more

Each message says what is wrong, where, and what to do, and may be shown to an operator.
The sentences for people on a platform are in bot/chat.
"""

from collections.abc import Sequence


class BotError(Exception):
    """Base class of all errors that this program raises."""

    exit_code = 1


class ConfigError(BotError):
    """Mistakes in the settings, all of them at once."""

    exit_code = 2

    def __init__(self, place: str, mistakes: Sequence[str]) -> None:
        self.place = place
        self.mistakes = tuple(mistakes)
        count = "1 mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        super().__init__("\n".join([f"{place} has {count}:", *(f"  {mistake}" for mistake in self.mistakes)]))


class EngineError(BotError):
    """The model cannot be used."""


class EngineUnavailable(EngineError):
    """The engine cannot start here: a package, a device or memory is missing."""


class EngineMisconfigured(EngineUnavailable):
    """A setting of the model is wrong; the message names it."""

    exit_code = 2


class CheckpointError(EngineError):
    """A model folder is missing, incomplete, or holds something else."""

    exit_code = 2


class EngineBusy(EngineError):
    """The queue is full: `waiting` requests of at most `limit`.

    `wait` estimates, from measured speed, the seconds until those have been served.
    """

    def __init__(self, waiting: int, limit: int, wait: float | None = None, section: str = "engine") -> None:
        self.waiting = waiting
        self.limit = limit
        self.wait = wait
        super().__init__(f"{waiting} requests are waiting already, and {section}.max_waiting is {limit}")


class PromptTooLong(EngineError):
    """The messages take `tokens` of the model's context of `limit`."""

    def __init__(self, tokens: int, limit: int) -> None:
        self.tokens = tokens
        self.limit = limit
        super().__init__(f"the prompt takes {tokens} tokens, and the model's context holds {limit}")


class PicturesRefused(EngineError):
    """The messages have more pictures than the model takes, which are `most`; 0 for one that sees none."""

    def __init__(self, most: int) -> None:
        self.most = most
        super().__init__(f"the model takes {most} pictures with a prompt" if most else "the model takes no pictures")


class EngineFailed(EngineError):
    """One request failed (out of memory, NaN); others are not affected."""


class AnswerBrokenOff(EngineFailed):
    """A model server broke off after the first text, and the same answer cannot be continued."""


class StoreError(BotError):
    """The database cannot be used: too new, locked, read-only, full or damaged."""


class StoreInUse(StoreError):
    """Another bot runs on this database; two would answer every message twice."""


class StoreDamaged(StoreError):
    """A page of the database cannot be read, or the file is no database any more: trying again does not help."""


class StoreLost(StoreError):
    """The database's files were deleted or replaced while the bot runs: what it stores from now on would be lost."""


class StoreMisconfigured(StoreError):
    """The database needs another master key than the settings have."""

    exit_code = 2


class NotErased(BotError):
    """`count` chats, or other texts only, were deleted from every row, but the files still hold their text.

    They are from before the encryption and not rewritten yet, or their keys cannot be overwritten.  The store
    does both by itself.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__("deleted from every row, but the database's files still hold the text for now")


class ClaimLost(BotError):
    """Another worker has claimed the exchange; this one must change nothing any more."""

    def __init__(self, exchange: int) -> None:
        self.exchange = exchange
        super().__init__(f"the claim of exchange {exchange} was lost")


class AddressUnavailable(BotError):
    """An HTTP server cannot listen: the port is taken, or the host is not an address of this machine."""


class PlatformError(BotError):
    """A platform refused or failed a call."""


class LoginRefused(PlatformError):
    """The platform rejects the token; the settings must be changed."""

    exit_code = 2


class PlatformUnavailable(PlatformError):
    """A connection error, a timeout or a server error; retrying may help."""


class RateLimited(PlatformError):
    """The platform accepts no call for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"the platform asks to wait {seconds:g} s")


class AppendLimited(RateLimited):
    """The platform accepts no text that is appended to a message; it may accept other calls."""


class MarkupRefused(PlatformError):
    """The platform rejects the markup of this text."""


class ContentRefused(PlatformError):
    """A filter of the platform or of a server's moderators refuses this text; another text may pass."""


class MessageGone(PlatformError):
    """The message to edit was deleted."""


class EditRefused(PlatformError):
    """The message exists, but the platform refuses every edit of it: it is too old, or has too many edits."""


class AccessDenied(PlatformError):
    """The bot may not write in the channel now; the permission may come back."""


class ChannelGone(PlatformError):
    """The channel does not exist any more, or is closed for good."""


class ReplyFull(PlatformError):
    """The platform takes no further message of this reply: it ends in those that it has."""


class ThreadRefused(PlatformError):
    """No thread can be opened for an answer; `sentence`, which people read in their language, says what is missing, or is ""."""

    def __init__(self, why: str, sentence: str = "") -> None:
        self.sentence = sentence
        super().__init__(why)
