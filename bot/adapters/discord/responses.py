"""Replies as responses to interactions: calls with the token of one, which Discord takes for 15 minutes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any

import discord
from discord.http import handle_message_parameters
from discord.webhook.async_ import async_context

from bot.adapters.discord.errors import TokenExpired, UnreadableAnswer
from bot.adapters.discord.guests import InteractionToken
from bot.adapters.discord.http import ALLOWED_MENTIONS
from bot.adapters.discord.messages import buttons, check_message
from bot.delivery.markdown.format import Rendered
from bot.domain import Controls
from bot.errors import ChannelGone, MessageGone, ReplyFull
from bot.util.recent import RecentDict

# The API's name of the response to an interaction, whose id is unknown until it is shown.
_ORIGINAL = "@original"


@dataclass(frozen=True, slots=True)
class _Shown:
    """A message of the reply to a question, and the token that changes it; `name` is what the API calls it there."""

    question: str
    token: InteractionToken
    name: str


class Responses:
    """The replies that are shown with tokens.

    A press of a button or a /retry brings a newer token for a reply; its earlier messages are changed with theirs.

    The response itself is an edit, so that a repeated call has no second effect.  Further messages are not
    deduplicated by Discord: one whose id was lost stays as "…".
    """

    def __init__(self, calling: Callable[[], AbstractAsyncContextManager[discord.Client]]) -> None:
        self._calling: Callable[[], Any] = calling
        self._tokens: RecentDict[str, InteractionToken] = RecentDict()  # the newest, by question
        self._shown: RecentDict[str, _Shown] = RecentDict()  # by message
        self._private: RecentDict[str, None] = RecentDict()  # questions whose replies one person sees

    def know(
        self, question: str, token: InteractionToken, messages: Sequence[str] = (), *, is_private: bool = False
    ) -> None:
        """Show the reply to a question with this token; `messages` are those that it has already.

        The response to a command may be private: then its further messages have to be so too.
        """
        self._tokens[question] = token
        if is_private:
            self._private[question] = None
        response = token.pressed or next(iter(messages), "")
        for message in messages:
            if message == token.pressed or message not in self._shown:
                self._shown[message] = _Shown(question, token, _ORIGINAL if message == response else message)

    def forget(self, question: str) -> None:
        self._tokens.pop(question, None)

    def has_question(self, question: str | None) -> bool:
        return question in self._tokens

    def has_message(self, message: str) -> bool:
        return message in self._shown

    def is_private(self, message: str) -> bool:
        """Return whether a message belongs to a reply that one person sees."""
        shown = self._shown.get(message)
        return shown is not None and shown.question in self._private

    async def show(self, question: str, text: Rendered, controls: Controls) -> str:
        """Show a text as the response to a question, and return the id of its message.

        Raises:
            TokenExpired: Discord takes the token no more.
        """
        return await self._edit(_Shown(question, self._tokens[question], _ORIGINAL), text, controls)

    async def edit(self, message: str, text: Rendered, controls: Controls) -> None:
        """Change a message.

        Raises:
            TokenExpired: Discord takes its token no more.
            MessageGone: It does not exist, or is none that its token changes.
        """
        if await self._edit(self._shown[message], text, controls) != message:
            raise MessageGone("the response to the interaction is another message")

    async def go_on(self, message: str, text: Rendered, controls: Controls) -> str:
        """Send a further message of the reply that begins with this message.

        Raises:
            ReplyFull: Discord takes the token no more.
        """
        begun = self._shown[message]
        try:
            return await self._follow_up(begun.question, begun.token, text, controls)
        except TokenExpired as expired:
            raise ReplyFull(str(expired)) from expired

    async def send_as_guest(
        self, text: Rendered, controls: Controls, *, reply_to: str | None, continues: str | None
    ) -> str:
        """Send a message of a reply in a guest place.

        Raises:
            ChannelGone: No token is known for it, or it has expired.
        """
        before = self._shown.get(continues or "")
        question = before.question if before is not None else reply_to or ""
        if (token := self._tokens.get(question)) is None:
            raise _no_token()
        try:
            if before is None and not token.pressed:
                return await self.show(question, text, controls)
            return await self._follow_up(question, token, text, controls)
        except TokenExpired as expired:
            raise _no_token() from expired

    async def edit_as_guest(self, message: str, text: Rendered, controls: Controls) -> None:
        """Change a message in a guest place.

        Raises:
            MessageGone: It cannot be changed, but its reply has a newer token to be sent with.
            ChannelGone: No token is known for it, or it has expired.
        """
        if (shown := self._shown.get(message)) is None:
            raise _no_token()
        newest = self._tokens.get(shown.question, shown.token)
        if newest != shown.token and not newest.pressed:
            with suppress(MessageGone):
                await self.delete_as_guest(message)
            raise MessageGone("the reply is shown as the response to a newer command")
        try:
            await self.edit(message, text, controls)
        except TokenExpired as expired:
            if newest != shown.token:
                raise
            raise _no_token() from expired

    async def delete_as_guest(self, message: str) -> None:
        """Delete a message in a guest place.

        Raises:
            MessageGone: It does not exist, or no token is known for it that Discord takes.
        """
        if (shown := self._shown.get(message)) is None:
            raise MessageGone("no token is known for the message")
        async with self._calling() as client:
            deletion: Any = async_context.get().delete_webhook_message(
                client.application_id, shown.token.token, _name(shown), **_session(client, shown.token)
            )
            if await deletion:  # no content is due
                raise UnreadableAnswer("Discord's answer to a deletion cannot be read")

    async def tell(self, question: str, sentence: str) -> None:
        """Send a sentence of its own behind a reply; raises as `show` does."""
        if (token := self._tokens.get(question)) is not None:
            await self._follow_up(question, token, Rendered(sentence), frozenset())

    async def _edit(self, shown: _Shown, text: Rendered, controls: Controls) -> str:
        # The interaction's own method would use the client that received it, which may be closed.
        async with self._calling() as client:
            with _message(text, controls) as params:
                answer = await async_context.get().edit_webhook_message(
                    client.application_id,
                    shown.token.token,
                    _name(shown),
                    payload=params.payload,
                    **_session(client, shown.token),
                )
            id = check_message(answer)
        self._shown[id] = shown
        return id

    async def _follow_up(self, question: str, token: InteractionToken, text: Rendered, controls: Controls) -> str:
        # The response itself was made private when the command was acknowledged.
        flags = discord.MessageFlags(ephemeral=True) if question in self._private else discord.utils.MISSING
        async with self._calling() as client:
            with _message(text, controls, flags) as params:
                answer = await async_context.get().execute_webhook(
                    client.application_id,
                    token.token,
                    payload=params.payload,
                    wait=True,
                    with_components=True,
                    **_session(client, token),
                )
            id = check_message(answer)
        self._shown[id] = _Shown(question, token, id)
        return id


def _message(text: Rendered, controls: Controls, flags: discord.MessageFlags = discord.utils.MISSING) -> Any:
    return handle_message_parameters(
        content=text.text, view=buttons(controls), allowed_mentions=ALLOWED_MENTIONS, flags=flags
    )


def _name(shown: _Shown) -> Any:
    return shown.name


def _session(client: discord.Client, token: InteractionToken) -> Mapping[str, Any]:
    webhook = discord.Webhook.partial(client.application_id or 0, token.token, client=client)
    return {"session": webhook.session, "proxy": client.http.proxy}


def _no_token() -> ChannelGone:
    return ChannelGone("the bot is no member here, and has no token that Discord takes")
