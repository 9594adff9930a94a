"""The running platform, as the routes use it."""

from dataclasses import dataclass

from bot.adapters.inbox import Inbox
from bot.adapters.web.messenger import WebMessenger
from bot.adapters.web.streams import PageStreams
from bot.chat.intake import Intake


@dataclass(frozen=True, slots=True)
class Chat:
    """The parts of the platform while it runs."""

    intake: Intake
    inbox: Inbox
    messenger: WebMessenger
    streams: PageStreams
