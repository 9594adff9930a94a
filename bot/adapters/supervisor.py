"""Run the platforms side by side: a fault of one neither stops nor delays another."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import structlog

from bot.adapters.base import Adapter
from bot.chat.intake import Intake
from bot.errors import BotError, LoginRefused
from bot.util.clock import Clock
from bot.util.retry import Backoff

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds until a rejected token is tried again: an account that was blocked may be released.
_REFUSED_SECONDS = 600.0
# Seconds until an adapter that stopped for another reason is restarted: the first delay and the longest.
_FIRST_RESTART = 1.0
_LONGEST_RESTART = 300.0
# Seconds after which a restart counts as successful.
_STEADY_SECONDS = 600.0


class SupervisedAdapter:
    """A platform's adapter, opened again after each end; a console (`is_final`) is opened once.

    With `ends_all` its end is that of all: the person at the terminal has left.  Where several bots share the
    platforms, `turn` is entered before the first: it waits until no other bot serves the platform.
    """

    def __init__(
        self,
        name: str,
        open: Callable[[], Adapter],
        clock: Clock,
        *,
        is_final: bool,
        ends_all: bool = False,
        turn: AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        self.name = name
        self.ends_all = ends_all
        self.has_ended = False
        self.is_standby = False  # another bot serves the platform
        self.refusal: LoginRefused | None = None
        self._open = open
        self._clock = clock
        self._is_final = is_final
        self._turn = turn
        self._adapter: Adapter | None = None
        self._fault: str | None = None

    @property
    def is_connected(self) -> bool:
        return self._adapter is not None and self._adapter.is_connected

    @property
    def fault(self) -> str | None:
        """The reason why the platform is not served, None while it is connected, or another bot serves it."""
        if self.is_connected or self.is_standby:
            return None
        return self._fault or "not connected"

    async def run(self, intake: Intake, check_others: Callable[[], None]) -> None:
        """Serve until cancelled; `check_others` is called after each refusal, and raises if that ends the program."""
        self.is_standby = self._turn is not None
        async with self._turn or nullcontext():
            self.is_standby = False
            await self._run(intake, check_others)

    async def _run(self, intake: Intake, check_others: Callable[[], None]) -> None:
        backoff = Backoff(_FIRST_RESTART, _LONGEST_RESTART)
        while True:
            began, error = self._clock.now(), await self._serve(intake)
            if self._is_final:
                self.has_ended = True
                check_others()
                return
            if isinstance(error, LoginRefused):
                self.refusal = error
                check_others()
                self._report_refusal(str(error))
                await self._clock.sleep(_REFUSED_SECONDS)
                self.refusal = None
                continue
            if self._clock.now() - began >= _STEADY_SECONDS:
                backoff.succeeded()
            seconds = backoff.after_failure()
            self._report_fault(error, seconds)
            await self._clock.sleep(seconds)

    async def _serve(self, intake: Intake) -> Exception | None:
        """Return the error that ended the adapter; those of a final one, or after a cancellation, are raised."""
        task = asyncio.current_task()
        assert task is not None
        try:
            self._adapter = self._open()
            await intake.choices.load()  # the first events and the first answers follow them
            await self._adapter.run(intake)
        except Exception as error:  # noqa: BLE001 - whatever its type, an adapter's bug concerns this platform only
            simple = _simplified(error)
            if self._is_final or task.cancelling():
                raise simple from None
            return simple
        finally:
            self._adapter = None
            intake.exchanges.release_unstarted(self.name)
        return None

    def _report_refusal(self, sentence: str) -> None:
        if self._fault != sentence:  # once, not at each attempt
            log.error("platform refused, the others go on", platform=self.name, error=sentence)
        self._fault = sentence

    def _report_fault(self, error: Exception | None, seconds: float) -> None:
        if isinstance(error, BotError):
            self._fault = str(error)
            log.error("platform stopped, restarting it", platform=self.name, seconds=seconds, error=self._fault)
        else:
            self._fault = "stopped by an internal error, see the log" if error else "stopped"
            log.error("platform stopped, restarting it", platform=self.name, seconds=seconds, exc_info=error)


async def serve_platforms(platforms: Sequence[SupervisedAdapter], intake: Intake, *, requires_all: bool) -> None:
    """Serve all platforms until each has ended, or one whose end is that of all.

    Raises:
        ExceptionGroup: With LoginRefused: no platform is left, or with `requires_all` one was refused.  With any
            other error: that of a console.
    """

    def check() -> None:
        left = [each for each in platforms if not each.has_ended]
        refusals = [each.refusal for each in left if each.refusal is not None]
        if refusals and (requires_all or len(refusals) == len(left)):
            raise refusals[0] if len(refusals) == 1 else LoginRefused("\n".join(map(str, refusals)))

    running: list[asyncio.Task[None]] = []

    async def serve(platform: SupervisedAdapter) -> None:
        await platform.run(intake, check)
        if platform.ends_all:
            for task in running:
                task.cancel()

    async with asyncio.TaskGroup() as tasks:
        running += [tasks.create_task(serve(each), name=each.name) for each in platforms]


def _simplified(error: Exception) -> Exception:
    """Return the first error of a group that holds only expected ones, a refusal before all others."""
    if not isinstance(error, ExceptionGroup):
        return error
    expected, unexpected = error.split(BotError)
    if expected is None or unexpected is not None:
        return error
    first: Exception = expected.subgroup(LoginRefused) or expected
    while isinstance(first, ExceptionGroup):
        first = first.exceptions[0]
    return first
