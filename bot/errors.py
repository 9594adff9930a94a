"""The one tree of errors.

    BotError
    ├── ConfigError             mistakes in config.toml or the environment
    ├── EngineError
    │   ├── EngineUnavailable   it cannot start: a package or a device is missing
    │   ├── CheckpointError     a model folder that cannot be used
    │   ├── EngineBusy          the queue is full
    │   ├── PromptTooLong       the messages do not fit the model's context
    │   └── EngineFailed        this request died; others live
    ├── StoreError              the database cannot be used
    │   └── StoreInUse          by another bot: one at a time
    ├── NotScrubbed             what was deleted is in no row any more, but still in the file
    ├── AddressUnavailable      the operations server cannot listen where it shall
    └── PlatformError
        ├── LoginRefused        a wrong token: the program ends
        ├── PlatformUnavailable a passing fault: try again
        ├── RateLimited         the platform says when
        ├── MarkupRefused       send the same words plain
        ├── MessageGone         the message to edit is no more
        └── ChannelGone         nobody can be reached there any more

Each message says what is wrong, where, and what to do; it may be shown to an operator
as it is.  What people on a platform read is written where they are answered.
"""

from collections.abc import Sequence


class BotError(Exception):
    """Everything this program raises on purpose."""

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


class CheckpointError(EngineError):
    """A model folder that misses something or holds something else."""


class EngineBusy(EngineError):
    """The queue is full: `waiting` requests of at most `limit`.

    `wait` estimates, from measured speed, the seconds until those have been served.
    """

    def __init__(self, waiting: int, limit: int, wait: float | None = None) -> None:
        self.waiting = waiting
        self.limit = limit
        self.wait = wait
        super().__init__(f"{waiting} requests are waiting already, and engine.max_waiting is {limit}")


class PromptTooLong(EngineError):
    """The messages take `tokens` of the model's context of `limit`."""

    def __init__(self, tokens: int, limit: int) -> None:
        self.tokens = tokens
        self.limit = limit
        super().__init__(f"the prompt takes {tokens} tokens, and the model's context holds {limit}")


class EngineFailed(EngineError):
    """This request died (out of memory, numbers that are not numbers); others live."""


class StoreError(BotError):
    """The database cannot be used: too new, locked, read-only, full or damaged."""


class StoreInUse(StoreError):
    """Another bot runs on this database; two would answer everything twice."""


class NotErased(BotError):
    """What was deleted, `count` chats, is in no row any more, but the database's file still holds it.

    Another program is in the way, or the disk is full.  The store tries again by itself.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__("what was deleted is in no row any more, but the database's file still holds it for now")


class AddressUnavailable(BotError):
    """The operations server cannot listen where it shall: the port is taken, or the host is not ours."""


class PlatformError(BotError):
    """A platform did not do what it was asked to."""


class LoginRefused(PlatformError):
    """The platform does not know this token: a mistake in the settings, which no restart cures."""

    exit_code = 2


class PlatformUnavailable(PlatformError):
    """Cut off, timed out, or an error of the platform's own: worth another try."""


class RateLimited(PlatformError):
    """The platform wants no call for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"the platform asks to wait {seconds:g} s")


class MarkupRefused(PlatformError):
    """The platform cannot read the markup of this text."""


class MessageGone(PlatformError):
    """The message to edit was deleted, or may no longer be edited."""


class ChannelGone(PlatformError):
    """The channel is gone, or the bot may not write there any more."""
