"""A button of the panel: who pressed it, and what it sends."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bot.adapters.web.access import Person, Right, require
from bot.adapters.web.chat import Chat
from bot.adapters.web.panel.sources import PanelSources
from bot.adapters.web.requests import LONGEST_BODY, locale_of, read_object
from bot.chat.i18n import Translate, language_for, translator
from bot.config.edit import ConfigEditor, Saved
from bot.domain import ChannelKey, IncomingMessage
from bot.errors import BotError, ConfigError, EngineError, StoreError
from bot.observability.logging import Redaction

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# The sentence that the page shows, or with it what else it needs.
Result = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PanelCall:
    """A button of the panel, and who pressed it."""

    chat: Chat
    sources: PanelSources
    person: Person
    body: dict[str, Any]
    locale: str | None

    @property
    def translate(self) -> Translate:
        return translator(language_for(self.chat.intake.settings.conversation.language, self.locale or "en", ""))

    def text(self, name: str) -> str:
        """Return a text from the page.

        Raises:
            HTTPException: It is missing.
        """
        value = self.body.get(name)
        if not isinstance(value, str):
            raise HTTPException(400, f"{name} is missing or not a string")
        return value


@dataclass(frozen=True, slots=True)
class PanelCalls:
    """Makes the routes of buttons; `find_chat` returns None while the platform starts or stops."""

    find_chat: Callable[[], Chat | None]
    sources: PanelSources

    def chat(self) -> Chat:
        """Return the running platform.

        Raises:
            HTTPException: It starts or stops.
        """
        if (chat := self.find_chat()) is None:
            raise HTTPException(503, "The bot is starting or stopping; the page tries again.")
        return chat

    def post(
        self,
        path: str,
        act: Callable[[PanelCall], Awaitable[Result]],
        right: Right = Right.ADMIN,
        most: int = LONGEST_BODY,
    ) -> Route:
        """Return the route of a button; what the program refuses is answered with its sentence."""

        async def run(request: Request) -> Response:
            person = require(request, right)
            call = PanelCall(self.chat(), self.sources, person, await read_object(request, most), locale_of(request))
            try:
                result = await act(call)
            except (ConfigError, EngineError, StoreError) as error:
                log.warning("panel: refused", path=path, by=person.author.key, error=str(error))
                status = 503 if isinstance(error, StoreError) else 409
                raise HTTPException(status, _refusal(error, call)) from error
            return JSONResponse({"notice": result} if isinstance(result, str) else result)

        return Route(path, run, methods=["POST"])


def _refusal(error: BotError, call: PanelCall) -> str:
    """Return the sentence for an error; only operators read errors, which name hosts and paths."""
    if call.person.right >= Right.OPERATOR:
        return str(error)
    return call.translate("This was not done; operators can read the reason in the log.")


def message_of(call: PanelCall, text: str, channel: ChannelKey) -> IncomingMessage:
    """Return a message of the person of the panel."""
    return IncomingMessage(
        id="",
        channel=channel,
        author=call.person.author,
        text=text,
        sent_at=call.chat.intake.today(),
        is_direct=False,
        locale=call.locale,
    )


async def carry_out(call: PanelCall, command: str, channel: ChannelKey) -> str:
    """Carry out a command as the person of the panel; return the sentence that answers it."""
    sentence = await call.chat.intake.forms.carry_out(message_of(call, command, channel))
    return sentence.replace("`", "")  # the page shows it as it is


def editor_of(call: PanelCall) -> ConfigEditor:
    """Return the editor of config.toml.

    Raises:
        HTTPException: The bot follows no file.
    """
    if (editor := call.sources.editor) is None:
        raise HTTPException(
            409, call.translate("The bot runs without a configuration file, so this cannot be changed.")
        )
    return editor


async def record(call: PanelCall, saved: Saved) -> None:
    """Keep who changed what in config.toml."""
    redact = Redaction(editor_of(call).current.secrets)
    changes = [
        replace(each, **{name: redact(value) for name in ("before", "after") if (value := getattr(each, name))})
        for each in saved.changes
    ]
    await call.sources.history.record(changes, call.person.author.key, call.chat.intake.today())
