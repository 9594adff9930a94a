"""The library's client with our events: what Discord tells it, handed on in the order in which it was told."""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import discord
import structlog
from discord import app_commands

from bot.adapters.discord.http import PINGS, RateLimitTrace, call_timeout
from bot.adapters.discord.parse import is_spoken
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.malformed import PARSE_ERRORS, describe_error
from bot.chat.commands import menu
from bot.chat.i18n import translator
from bot.errors import PlatformError, PlatformUnavailable, RateLimited
from bot.util.clock import Clock
from bot.util.retry import Backoff

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds between two beginnings of a session, of which Discord wants at least 5, and the most
# where they fail again and again: 1000 a day are allowed, and the library gives up after 60 s.
_FIRST_WAIT = 5.5
_LONGEST_WAIT = 40.0
# Seconds until commands are announced again where Discord could not be reached.
_ANNOUNCE_AGAIN = 60.0
_CHINESE = frozenset({discord.Locale.chinese, discord.Locale.taiwan_chinese})

# The bot has no voice, and nobody needs to be told at each start.
discord.VoiceClient.warn_nacl = False
discord.VoiceClient.warn_dave = False


class Listener(Protocol):
    """Who is told; each call returns at once."""

    def connected(self, client: "BotClient") -> None:
        """A new session began: what was said between the last one and it was not told."""
        ...

    def ready(self) -> None:
        """The servers and channels of this session are known."""
        ...

    def said(self, message: discord.Message) -> None: ...

    def edited(self, message: discord.Message) -> None: ...

    def deleted(self, server_id: int | None, channel_id: int, message_ids: Sequence[int]) -> None: ...

    def commanded(self, interaction: discord.Interaction, name: str) -> None: ...

    async def pressed(self, interaction: discord.Interaction) -> None: ...


class IdentifyBudget:
    """When a session may begin; what one client leaves, the next one keeps to."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._wait = Backoff(_FIRST_WAIT, _LONGEST_WAIT)
        self._next = clock.now()

    async def turn(self) -> None:
        while (wait := self._next - self.clock.now()) > 0:
            await self.clock.sleep(wait)
        self._next = self.clock.now() + self._wait.after_failure()

    def succeeded(self) -> None:
        self._wait.succeeded()


def identify_delay(remaining: int, total: int, reset_after: float) -> float:
    """Seconds to wait before one of the sessions that Discord still lets a bot begin today is used.

    Who uses up all of them loses the token.  The first half is free; the other one is spread
    over the seconds until they are counted anew, for a bot that somebody restarts again and again.

    >>> sparing(999, 1000, 80_000.0), sparing(400, 1000, 80_000.0), sparing(0, 1000, 80_000.0)
    (0.0, 200.0, 80000.0)
    """
    return 0.0 if 2 * remaining > total else reset_after / max(remaining, 1)


class BotClient(discord.Client):
    """One connection: an object that was closed is not used again."""

    def __init__(
        self,
        settings: DiscordSection,
        listener: Listener,
        refusals: RateLimitTrace,
        sessions: IdentifyBudget,
        server_seconds: float,
        cut_off_seconds: float,
    ) -> None:
        # The intents are looked at when the session begins; `setup_hook` still adds to them.
        self._wanted = discord.Intents(guilds=True, guild_messages=True, dm_messages=True)
        super().__init__(
            intents=self._wanted,
            allowed_mentions=PINGS,
            proxy=settings.proxy.get_secret_value() or None,
            http_trace=refusals.trace,
            # The library's shortest; it is for what it foresees, a refusal ends a call anyway.
            max_ratelimit_timeout=30.0,
            max_messages=None,
            guild_ready_timeout=server_seconds,
        )
        self.was_ready = False
        self.is_connected = False  # a session that tells us what is said; the library's `is_ready` stays true
        self._call_seconds = settings.call_seconds
        self._cut_off_seconds = cut_off_seconds
        self._patience: asyncio.Timeout | None = None
        self._announcing: asyncio.Task[None] | None = None
        self._listener = listener
        self._sessions = sessions
        # An event that the library cannot read would cost the connection.
        self._connection.parsers = {name: _guarded(name, parse) for name, parse in self._connection.parsers.items()}
        self._tree = _Menu(self)
        for command in menu():
            self._tree.add_command(_announced(command.name, command.summary))

    @property
    def me(self) -> discord.ClientUser:
        assert self.user is not None, "events come after the login"
        return self.user

    @property
    def reads_all(self) -> bool:
        """Whether Discord shows the text of messages that do not mention the bot."""
        return self._wanted.message_content

    async def setup_hook(self) -> None:
        flags = self.application_flags
        # Asked for without being allowed, it would cost the connection.
        self._wanted.message_content = flags.gateway_message_content or flags.gateway_message_content_limited
        await self._tree.set_translator(_Summaries())
        wait = await self._announce()
        if wait is not None:
            self._announcing = asyncio.create_task(self._announce_after(wait))

    async def _spare_sessions(self) -> None:
        try:
            async with call_timeout(self._call_seconds, self):
                _, _, limit = await self.http.get_bot_gateway()
            wait = identify_delay(limit["remaining"], limit["total"], limit["reset_after"] / 1000)
        except (discord.GatewayNotFound, *PARSE_ERRORS):
            return  # what stands between us and Discord does not tell
        if wait > 0:
            log.warning("waiting, for few sessions are left today", seconds=round(wait), left=limit["remaining"])
            await self._sessions.clock.sleep(wait)

    async def connect(self, *, reconnect: bool = True) -> None:
        """Stay connected; where that fails for `cut_off_seconds`, another client does better.

        After each failure the library waits longer, up to 17 minutes, and nothing wakes it.  But it
        resumes sessions, and its first tries come soon: so it is left alone until then.
        """
        await self._spare_sessions()
        try:
            async with asyncio.timeout(None) as self._patience:
                await super().connect(reconnect=reconnect)
        except TimeoutError as exc:
            raise PlatformUnavailable(f"Discord's gateway was out of reach for {self._cut_off_seconds:g} s") from exc
        finally:
            self._patience = None

    async def close(self) -> None:
        # The library leaves the wait for the first servers behind, which would fail on a client that is closed.
        waiting = [task for task in (self._announcing, self._connection._ready_task) if task is not None]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await super().close()

    async def _announce(self) -> float | None:
        """Tell Discord the commands; return after how many seconds to try again, if that may help."""
        try:
            async with call_timeout(self._call_seconds, self):
                await self._tree.sync()
        except RateLimited as limited:
            return limited.seconds
        except PlatformUnavailable as error:
            log.warning("slash commands not announced yet", error=str(error))
            return _ANNOUNCE_AGAIN
        except (discord.DiscordException, PlatformError) as error:
            log.warning("slash commands not announced; those of the last start stay", error=str(error))
        return None

    async def _announce_after(self, seconds: float) -> None:
        wait: float | None = seconds
        while wait is not None:
            await self._sessions.clock.sleep(wait)
            wait = await self._announce()

    async def before_identify_hook(self, shard_id: int | None, *, initial: bool = False) -> None:
        await self._sessions.turn()

    async def on_connect(self) -> None:
        self._be_patient_until(None)
        self._listener.connected(self)

    async def on_disconnect(self) -> None:
        self.is_connected = False
        # Told of each try that fails; the time runs from the first.
        if self._patience is not None and self._patience.when() is None:
            self._be_patient_until(asyncio.get_running_loop().time() + self._cut_off_seconds)

    async def on_resumed(self) -> None:
        self._be_patient_until(None)
        self.is_connected = True

    def _be_patient_until(self, when: float | None) -> None:
        if self._patience is not None:
            self._patience.reschedule(when)

    async def on_ready(self) -> None:
        self.was_ready = self.is_connected = True
        self._sessions.succeeded()
        self._listener.ready()

    async def on_message(self, message: discord.Message) -> None:
        if is_spoken(message):
            self._listener.said(message)

    async def on_raw_message_edit(self, event: discord.RawMessageUpdateEvent) -> None:
        # Without a time of its own the edit is Discord's: a link got its preview.
        if event.message.edited_at is not None and is_spoken(event.message):
            self._listener.edited(event.message)

    async def on_raw_message_delete(self, event: discord.RawMessageDeleteEvent) -> None:
        self._listener.deleted(event.guild_id, event.channel_id, [event.message_id])

    async def on_raw_bulk_message_delete(self, event: discord.RawBulkMessageDeleteEvent) -> None:
        self._listener.deleted(event.guild_id, event.channel_id, sorted(event.message_ids))

    async def on_interaction(self, interaction: discord.Interaction) -> None:
        if interaction.type is discord.InteractionType.component:
            await self._listener.pressed(interaction)
        elif interaction.type is discord.InteractionType.application_command and interaction.channel_id is not None:
            data: Mapping[str, Any] = interaction.data or {}
            for command in menu():
                if command.name == data.get("name"):
                    self._listener.commanded(interaction, command.name)

    async def on_error(self, event_method: str, /, *args: Any, **kwargs: Any) -> None:
        """Note what a listener of ours raised: of an event half read, the library hands on what it has."""
        error = sys.exc_info()[1]
        if isinstance(error, PARSE_ERRORS):
            log.warning("discord sent an event that cannot be read", kind=event_method, **describe_error(error))
        else:
            log.error("an event from discord was dropped", kind=event_method, exc_info=error)


class _Menu(app_commands.CommandTree[BotClient]):
    """Announces the commands; who uses one is heard by `on_interaction`, like all that is said.

    The library would look for the command in a task that nobody waits for, and that dies of
    what it cannot read.
    """

    async def interaction_check(self, interaction: discord.Interaction[BotClient], /) -> bool:
        return False


class _Summaries(app_commands.Translator):
    """What a command does, in the language of who reads the menu."""

    async def translate(
        self,
        string: app_commands.locale_str,
        locale: discord.Locale,
        context: app_commands.TranslationContext[Any, Any],
    ) -> str | None:
        is_summary = context.location is app_commands.TranslationContextLocation.command_description
        return translator("zh")(string.message) if is_summary and locale in _CHINESE else None


def _guarded(name: str, parse: Callable[[Any], Any]) -> Callable[[Any], None]:
    def attempt(data: Any) -> None:
        try:
            parse(data)
        except PARSE_ERRORS as error:
            log.warning("discord sent an event that cannot be read", kind=name, **describe_error(error))

    return attempt


def _announced(name: str, summary: str) -> app_commands.Command[Any, ..., None]:
    async def use(interaction: discord.Interaction) -> None:
        """Is never called: see `_Menu`."""

    return app_commands.Command(name=name, description=summary, callback=use)
