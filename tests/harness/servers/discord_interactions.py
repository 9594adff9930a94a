"""Discord's API for interactions: their responses, which must come in time, and what their tokens allow."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.harness.servers import discord_components as components
from tests.harness.servers import discord_payloads as payloads
from tests.harness.servers.discord_answers import error, json_answer
from tests.harness.servers.discord_gateway import DiscordGateway
from tests.harness.servers.discord_payloads import Json
from tests.harness.servers.discord_world import EPHEMERAL

# Seconds for the first response, and of a token.
_FIRST, _LAST = 3.0, 900.0
# Further messages where only the user has installed the application.
_MOST_FOLLOW_UPS = 5
_IS_LOADING = 128


@dataclass(eq=False)
class Interaction:
    """A command, a use of a component or a submitted modal, its response and its further messages."""

    channel: int
    kind: int = 2
    message: int | None = None  # the message with the component, also of one that opened the modal
    began: float = 0.0
    is_guest: bool = False
    is_answered: bool = False
    is_expired: bool = False
    is_private: bool = False
    response: int | None = None
    follow_ups: list[int] = field(default_factory=list)


class DiscordInteractionRest(DiscordGateway):
    """The calls of interactions.

    Their limits of time are counted in `seconds_passed`, which only tests change: how fast a machine is decides nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds_passed = 0.0
        self.installs = {0, 1}  # the application can be installed in servers (0), and by users (1)
        self.garbled_callbacks = 0  # remaining responses to interactions that are cut off
        self.offered: list[list[str]] = []  # choices for options that are being typed
        self.modals: list[tuple[int | None, Json]] = []  # modals shown, each with the message of its button
        self._opened: list[Interaction] = []  # what opened each of them
        self._interactions: dict[str, Interaction] = {}

    async def _write(
        self, request: web.Request, name: str, channel: int, work: Callable[[], web.Response]
    ) -> web.Response:
        raise NotImplementedError

    def _validate(self, body: Json) -> web.Response | None:
        raise NotImplementedError

    @property
    def unanswered(self) -> int:
        """The number of commands and button presses without a response."""
        return sum(not each.is_answered for each in self._interactions.values())

    @property
    def tokens(self) -> list[str]:
        return list(self._interactions)

    def forget_interactions(self) -> None:
        self._interactions.clear()

    def expire(self) -> None:
        """Make all interactions too old for a response."""
        for interaction in self._interactions.values():
            interaction.is_answered = interaction.is_expired = True

    def _callback(self, id: int, token: str, body: Json) -> web.Response:
        interaction = self._interactions.get(token)
        if interaction is None:
            return error(404, 10062, "Unknown interaction")
        is_late = not interaction.is_answered and self.seconds_passed - interaction.began > _FIRST
        if interaction.is_expired or is_late:
            return error(404, 10062, "Unknown interaction")
        if interaction.is_answered:
            return error(400, 40060, "Interaction has already been acknowledged.")
        if (refused := self._refused_response(interaction, body)) is not None:
            self.violations.append(refused)
            return error(400, 50035, refused)
        interaction.is_answered = True
        answer: Json = {"interaction": {"id": str(id), "type": 2, "response_message_ephemeral": False}}
        if body["type"] in (4, 5):
            message = self._respond(id, interaction, body)
            answer["interaction"]["response_message_id"] = message["id"]
            answer["resource"] = {"type": body["type"], "message": message}
        if body["type"] in (6, 7):
            interaction.response = interaction.message
        if body["type"] == 7 and interaction.message is not None:
            message = self.messages[interaction.message]
            message |= {name: body["data"][name] for name in ("content", "components") if name in body["data"]}
            answer["interaction"]["response_message_id"] = message["id"]
            answer["resource"] = {"type": 7, "message": message}
        if body["type"] == 9:
            self.modals.append((interaction.message, body["data"]))
            self._opened.append(interaction)
        if body["type"] == 8:
            self.offered.append([choice["value"] for choice in body["data"]["choices"]])
        self.changed.set()
        if self.garbled_callbacks:
            self.garbled_callbacks -= 1
            return web.Response(body=b'{"interaction": {', content_type="application/json")
        return json_answer(answer)

    def _respond(self, id: int, interaction: Interaction, body: Json) -> Json:
        """Show a message as the response."""
        data = body.get("data") or {}
        flags = data.get("flags", 0) | (_IS_LOADING if body["type"] == 5 else 0)
        flags |= EPHEMERAL if interaction.is_private else 0
        shown = {
            "flags": flags,
            "type": 20,
            "components": data.get("components", []),
            "embeds": data.get("embeds", []),
            "interaction_metadata": {
                "id": str(id),
                "type": interaction.kind,
                "user": self.bot,
                "authorizing_integration_owners": {},
            },
        }
        message = payloads.message(self._new_id(), interaction.channel, self.bot, data.get("content") or "", **shown)
        interaction.response = int(message["id"])
        self._keep(message)
        self._announce("MESSAGE_CREATE", message)
        return message

    def _announce(self, name: str, message: Json) -> None:
        """Send an event of a message, where the bot is a member and sees it as everybody does."""
        if int(message["channel_id"]) not in self.guest_places and not message["flags"] & EPHEMERAL:
            self.send_event(name, message)

    def _refused_response(self, interaction: Interaction, body: Json) -> str | None:
        """Return why Discord refuses this response to an interaction."""
        data = body.get("data") or {}
        match body["type"]:
            case 6 | 7 if interaction.message is None:
                return "an update of a message that the interaction does not come from"
            case 9:
                return "a modal answers a modal" if interaction.kind == 5 else components.refused_modal(data)
            case 4 if not (data.get("content") or data.get("embeds")):
                return "an empty message"
            case 4 if data.get("allowed_mentions", {}).get("parse", ["everyone"]) != []:
                return "a response that may mention everyone"
            case 4 if any(len(each.get("description", "")) > 4096 for each in data.get("embeds", [])):
                return "embeds: description: Must be 4096 or fewer in length."
            case 4 | 7 if len(data.get("content") or "") > 2000:
                return "content: Must be 2000 or fewer in length."
            case 4 | 7:
                return components.refused_rows(data.get("components", []))
        return None

    def _refused_token(self, token: str) -> web.Response | None:
        interaction = self._interactions.get(token)
        if interaction is None or interaction.is_expired or self.seconds_passed - interaction.began > _LAST:
            return error(401, 50027, "Invalid Webhook Token")
        return None if interaction.is_answered else error(404, 10015, "Unknown Webhook")

    async def _follow_up(self, request: web.Request, token: str, body: Json) -> web.Response:
        interaction = self._interactions.get(token)

        def work() -> web.Response:
            if (refused := self._refused_token(token)) is not None:
                return refused
            assert interaction is not None, "a token that is taken"
            if (refused := self._validate(body)) is not None:
                return refused
            if interaction.is_guest and len(interaction.follow_ups) >= _MOST_FOLLOW_UPS:
                return error(400, 40094, "This interaction has reached the maximum number of follow-up messages.")
            shown: Json = {"flags": body.get("flags", 0), "components": body.get("components", [])}
            message = payloads.message(self._new_id(), interaction.channel, self.bot, body["content"], **shown)
            interaction.follow_ups.append(int(message["id"]))
            self._keep(message)
            self._announce("MESSAGE_CREATE", message)
            return json_answer(message)

        if interaction is None:
            return error(401, 50027, "Invalid Webhook Token")
        return await self._write(request, "send", interaction.channel, work)

    async def _shown_by_token(
        self, request: web.Request, token: str, name: str, method: str, body: Json
    ) -> web.Response:
        interaction = self._interactions.get(token)

        def work() -> web.Response:
            if (refused := self._refused_token(token)) is not None:
                return refused
            assert interaction is not None, "a token that is taken"
            own = [interaction.response, *interaction.follow_ups]
            id = interaction.response if name == "@original" else int(name)
            message: Any = self.messages.get(id or 0)
            if message is None or id not in own:
                return error(404, 10008, "Unknown Message")
            if method == "DELETE":
                del self.messages[int(message["id"])]
                return web.Response(status=204)
            if method == "PATCH":
                if (refused := self._validate(body)) is not None:
                    return refused
                message |= {key: body[key] for key in ("content", "components", "embeds") if key in body}
                message["flags"] &= ~_IS_LOADING
                self._announce("MESSAGE_UPDATE", message)
            return json_answer(message)

        if interaction is None:
            return error(401, 50027, "Invalid Webhook Token")
        return await self._write(request, "edit", interaction.channel, work)
