"""Rights to change the settings of a place in the chat."""

from collections.abc import Awaitable, Callable

from bot.chat.access import Access
from bot.domain import IncomingMessage

IsManager = Callable[[IncomingMessage], Awaitable[bool]]
"""Asks a platform whether the author of a message manages its channel; may raise PlatformError."""


class Rights:
    """Admins may, a person in a direct chat, and unless `access.settings_by` says otherwise a channel's managers.

    The platform is asked each time: a right that was taken away is gone.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._managers: dict[str, IsManager] = {}

    def register(self, platform: str, is_manager: IsManager) -> None:
        """Let a platform answer for its channels."""
        self._managers[platform] = is_manager

    async def may_set(self, message: IncomingMessage) -> bool:
        """Return whether the author may change settings where the message was sent.

        Raises:
            PlatformError: The platform cannot be asked.
        """
        if self._access.is_admin(message.author) or message.is_direct:
            return True
        is_manager = self._managers.get(message.channel.platform)
        return self._access.managers_may_set and is_manager is not None and await is_manager(message)
