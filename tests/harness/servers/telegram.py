"""A loopback Telegram Bot API, as strict as the real one, and its users."""

import asyncio
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import count
from types import TracebackType
from typing import Any, Literal, Self

from aiohttp import web
from pydantic import SecretStr

from bot.adapters.base import Adapter
from bot.adapters.telegram.adapter import open_adapter
from bot.adapters.telegram.markup import LIMIT, MOST_ENTITIES, Entity
from bot.adapters.telegram.settings import TelegramSection
from bot.delivery.markdown.format import utf16_units
from bot.domain import Action
from bot.util.clock import Clock, MonotonicClock
from tests.harness.platform import TIMEOUT, FaultScript, Seen
from tests.harness.servers.fault_gate import FaultGate
from tests.harness.servers.file_shelf import FileShelf
from tests.harness.servers.telegram_keyboards import Buttons, actions, others, refused_keyboard
from tests.harness.servers.telegram_rich import Json, markdown_of, refused_message, same, text_of
from tests.harness.servers.telegram_words import fitted, markdown, refused, specials, words

TOKEN = "123456789:AAExampleExampleExampleExampleExam"
BOT_ID = 123456789
BOT = "glm_bot"
UNCHANGED = "an edit that changes nothing"
TODAY = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)

# Calls that users can see the effect of; a FaultScript can make them fail.
WRITING = (
    "sendMessage",
    "sendRichMessage",
    "answerGuestQuery",
    "createForumTopic",
    "editMessageText",
    "editMessageReplyMarkup",
    "deleteMessage",
    "sendMessageDraft",
    "sendRichMessageDraft",
)
# What a server knows: 404 for rich messages, rich messages without blocks (10.1), or blocks too (10.2 and newer).
Knows = Literal["text", "markdown", "blocks"]


@dataclass(slots=True)
class Chat:
    """A private chat, group or supergroup; `gone` is the error for writing to it."""

    id: int
    name: str
    kind: str = "supergroup"
    topics: dict[str, int] = field(default_factory=dict)
    is_forum: bool = False  # also without topics
    gone: tuple[int, str] | None = None
    migrated_to: int | None = None
    not_before: float = -math.inf

    def facts(self) -> Json:
        if self.kind == "private":
            return {"id": self.id, "type": "private", "first_name": self.name}
        return {"id": self.id, "type": self.kind, "title": self.name, "is_forum": self.is_forum or bool(self.topics)}


@dataclass(slots=True)
class Message:
    """A message as its chat shows it."""

    id: int
    chat: Chat
    author: str
    text: str
    topic: int | None = None
    entities: tuple[Entity, ...] = ()
    actions: frozenset[Action] = frozenset()
    reply_to: int | None = None
    is_shown: bool = True  # whether the bot received the response to its last write
    mention: str = ""
    attached: Json | None = None  # {"document": …} or {"photo": […]}
    buttons: Buttons = ()  # those that are no actions
    blocks: list[Json] | None = None  # of a rich message

    @property
    def is_the_bots(self) -> bool:
        return self.author == BOT


class Refused(Exception):
    """An error response of the Bot API."""

    def __init__(self, code: int, description: str, **parameters: int) -> None:
        self.code = code
        self.body: Json = {"ok": False, "error_code": code, "description": description}
        if parameters:
            self.body["parameters"] = parameters


class TelegramPlatform:
    """A LoopbackPlatform: a channel is a supergroup, a thread is a topic."""

    name = "telegram"

    def __init__(self, *, knows: Knows = "text", **settings: Any) -> None:
        self.knows = knows
        self.refuses_blocks = False
        self.gate = FaultGate()
        self.shelf = FileShelf()
        self.violations: list[str] = []
        self.script: FaultScript = lambda number, name: None
        self.calls: list[tuple[str, Json]] = []
        self.now = TODAY  # the date of messages
        self.clock = TODAY  # the server's date
        self.call_seconds = 20.0  # timeout of the bot's calls
        self.reads_all = False
        self.joins_groups = True
        self.takes_guests = False
        self.administrators: set[str] = set()  # names of people
        self.group_administrators: dict[str, set[str]] = {}  # those of one group, by its name
        self.manages_topics = True  # the bot administers its groups, and their topics
        self.garbage: list[bytes] = []  # the bodies of the next responses
        self.webhook = ""
        self.drafts: dict[int, list[str]] = {}  # all versions of the current draft
        self._guest_queries: dict[str, Message] = {}
        self._reactions: dict[tuple[int, int, str], tuple[str, ...]] = {}
        self._guest_messages: dict[str, Message] = {}
        self.inline_answers: dict[str, Json] = {}
        self._stoppable: dict[int, int] = {}  # the draft with a stop button, by chat
        self.menus: dict[str, list[Json]] = {}
        self.answers: dict[str, str] = {}
        self.answering = asyncio.Event()  # while cleared, answers to presses and inline queries do not return
        self.answering.set()
        self.pending: list[Json] = []
        self.language = "en"
        self.polls = 0
        self.refuses_entities = False
        self.broken: dict[str, Refused] = {}
        self.messages: dict[tuple[int, int], Message] = {}
        self._settings = settings
        self._chats: dict[int, Chat] = {}
        self._between: dict[str, Chat] = {}  # private chats without the bot
        self._last_press: Json = {}
        self._deleted: dict[tuple[int, int], int | None] = {}  # with the topics in which they were
        self._people: dict[str, int] = {}
        self._ids = count(1)
        self._numbers: dict[int, count[int]] = {}
        self._updates = count(500_000)
        self._writes = count()
        self._poll: asyncio.Future[None] | None = None
        self._polling: web.Request | None = None
        self._watchers: list[asyncio.Future[None]] = []
        self._clock: Clock = MonotonicClock()
        self.server_port = 0
        self._url = ""

    # The LoopbackPlatform protocol.

    def adapter(self, clock: Clock) -> Adapter:
        self._clock = clock
        return open_adapter(self.settings(), clock)

    def settings(self) -> TelegramSection:
        known = {"token": SecretStr(TOKEN), "api_url": self._url, "call_seconds": self.call_seconds}
        return TelegramSection.model_validate(known | self._settings)

    async def say(
        self,
        text: str,
        *,
        author: str = "Mei",
        channel: str = "general",
        thread: str | None = None,
        direct: bool = False,
        mention: bool = True,
        reply_to: str | None = None,
        attached: Json | None = None,
        **facts: Any,
    ) -> str:
        chat = self.private(author) if direct else self.group(channel)
        name = ""
        if mention and not direct:
            # In a group a command names the bot.
            text, name = (re.sub(r"^/\w+", rf"\g<0>@{BOT}", text), "") if text.startswith("/") else (text, f"@{BOT} ")
        message = Message(
            self.number_in(chat),
            chat,
            author,
            name + text,
            topic=None if thread is None else chat.topics.setdefault(thread, self.number_in(chat)),
            reply_to=None if reply_to is None else int(reply_to),
            mention=name,
            attached=attached,
        )
        self.messages[chat.id, message.id] = message
        self.push({"message": self.facts_of(message) | facts})
        return str(message.id)

    def file(self, name: str, data: bytes, media_type: str = "") -> Json:
        """Return a document for `say(…, attached=…)`."""
        id = str(next(self._ids))
        self.shelf.files[f"documents/{id}"] = data
        facts: Json = {"file_id": id, "file_unique_id": id, "file_name": name, "file_size": len(data)}
        return {"document": facts | ({"mime_type": media_type} if media_type else {})}

    def photo(self, data: bytes, *smaller: bytes) -> Json:
        """Return a photo for `say(…, attached=…)`, in several sizes."""
        documents = [self.file("", each)["document"] for each in (*smaller, data)]
        return {"photo": [{name: value for name, value in each.items() if name != "file_name"} for each in documents]}

    async def edit(self, message_id: str, text: str) -> None:
        message = self.find(message_id)
        message.text = message.mention + text
        self.push({"edited_message": self.facts_of(message) | {"edit_date": int(self.now.timestamp())}})

    async def delete(self, message_id: str) -> None:
        message = self.find(message_id)
        self._deleted[message.chat.id, message.id] = message.topic
        del self.messages[message.chat.id, message.id]
        self._change()

    async def command(self, name: str, *, author: str = "Mei", channel: str = "general") -> None:
        await self.say(f"/{name}", author=author, channel=channel)

    async def press(self, message_id: str, action: Action, *, author: str = "Mei") -> None:
        message = self.find(message_id)
        assert action in message.actions, f"there is no such button under {message.text!r}"
        self._press(self.facts_of(message), action.value, author)

    def tap(self, message: Message, data: str, *, author: str = "Mei", is_old: bool = False) -> str:
        """Press a button that is no action; return the id of the press. Of an old message only its place is sent."""
        assert data in [known for _, known in message.buttons], f"there is no {data} under {message.text!r}"
        old = {"message_id": message.id, "date": 0, "chat": message.chat.facts()}
        return self._press(old if is_old else self.facts_of(message), data, author)

    def _press(self, message: Json, data: str, author: str) -> str:
        query = {"id": str(next(self._ids)), "from": self.person(author), "message": message, "chat_instance": "1"}
        self._last_press = {"callback_query": query | {"data": data}}
        self.repeat_press()
        return str(query["id"])

    def react(self, message_id: str, *emoji: str, author: str = "Mei") -> None:
        """Replace a person's reactions to a message; in a group Telegram tells administrators only."""
        message = self.find(message_id)
        key = message.chat.id, message.id, author
        old, self._reactions[key] = self._reactions.get(key, ()), emoji
        kinds = ([{"type": "emoji", "emoji": each} for each in shown] for shown in (old, emoji))
        facts = {"chat": message.chat.facts(), "message_id": message.id, "user": self.person(author), "date": 0}
        if message.chat.kind == "private" or self.manages_topics:
            self.push({"message_reaction": facts | dict(zip(("old_reaction", "new_reaction"), kinds, strict=True))})

    def guest(self, text: str, *, author: str = "Mei", channel: str = "elsewhere", partner: str | None = None) -> None:
        """Mention the bot in a group where it is no member, or in the private chat with a `partner`."""
        id = str(next(self._ids))
        if partner is None:
            chat = self.group(channel)
            chat.gone = 403, "Forbidden: bot is not a member of the supergroup chat"
        else:
            # All private chats of the partner have this id.
            chat = self._between.setdefault(channel, Chat(self.person(partner)["id"], channel, "private"))
        message = Message(self.number_in(chat), chat, author, f"@{BOT} {text}", mention=f"@{BOT} ")
        self.messages[chat.id, message.id] = self._guest_queries[id] = message
        self.push({"guest_message": self.facts_of(message) | {"guest_query_id": id}})

    def write_inline(self, text: str, *, author: str = "Mei") -> str:
        """Write behind the bot's name in the field of another chat; return the id of the query."""
        id = str(next(self._ids))
        self.push({"inline_query": {"id": id, "from": self.person(author), "query": text, "offset": ""}})
        return id

    def stop_draft(self, person: str, draft: int | None = None) -> None:
        """Press the button below the draft in a private chat; or send the update about another draft."""
        chat = self.private(person)
        id = self._stoppable[chat.id] if draft is None else draft
        assert id, "the draft has no such button"
        self.push({"stopped_message_generation": {"chat": chat.facts(), "draft_id": id}})

    def repeat_press(self) -> None:
        """Deliver the last press again, as if its update had not been confirmed."""
        self.push(self._last_press)

    def seen(self, channel: str = "general", thread: str | None = None) -> list[Seen]:
        chats = [*self._chats.values(), *self._between.values()]
        chat = next((chat for chat in chats if chat.name == channel and not chat.migrated_to), None)
        if chat is None:
            return []
        topic = None if thread is None else chat.topics.get(thread, -1)
        return [
            Seen(
                id=str(message.id),
                author="bot" if message.is_the_bots else message.author,
                markdown=_markdown(message),
                visible=words(message.text),
                actions=message.actions,
                reply_to=None if message.reply_to is None else str(message.reply_to),
            )
            for message in self.messages.values()
            if message.chat is chat and message.topic == topic
        ]

    async def until(self, condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._watchers.append(watcher)
                await watcher

    async def disconnect(self, *, resumable: bool = True) -> None:
        if self._polling is not None:
            _cut(self._polling)

    async def __aenter__(self) -> Self:
        app = self.gate.app()
        app.router.add_route("*", "/bot{token}/{method}", self._answer)
        app.router.add_get(f"/file/bot{TOKEN}/{{path:.*}}", self.shelf.hand_out)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.set_port(self._runner.addresses[0][1])
        return self

    def set_port(self, port: int) -> None:
        """Send the bot to another port, where a proxy listens."""
        self.server_port, self._url = port, f"http://127.0.0.1:{port}"

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wake()
        await self._runner.cleanup()

    # Only on Telegram.

    def private(self, person: str) -> Chat:
        id = self.person(person)["id"]
        return self._chats.setdefault(id, Chat(id, person, "private"))

    def group(self, name: str, kind: str = "supergroup") -> Chat:
        known = next((chat for chat in self._chats.values() if chat.name == name and not chat.migrated_to), None)
        if known is None:
            known = Chat(-1_000_000_000_000 - next(self._ids), name, kind)
            self._chats[known.id] = known
        return known

    def threads(self, name: str) -> list[str]:
        """Return the names of a group's topics."""
        return list(self.group(name).topics)

    def person(self, name: str) -> Json:
        id = self._people.setdefault(name, 7_000 + len(self._people))
        return {"id": id, "is_bot": name.endswith("bot"), "first_name": name, "language_code": self.language}

    def migrate(self, name: str) -> Chat:
        """Migrate a group to a supergroup with a new id; its messages stay in the old chat."""
        old = self.group(name)
        new = Chat(-1_000_000_000_000 - next(self._ids), name)
        self._chats[new.id] = new
        old.migrated_to = new.id
        return new

    def push_migration(self, old: Chat, new: Chat) -> None:
        """Send the two service messages about a migration."""
        base = {"date": int(self.now.timestamp()), "from": self.person("Mei")}
        self.push({"message": base | {"message_id": 1, "chat": old.facts(), "migrate_to_chat_id": new.id}})
        self.push({"message": base | {"message_id": 1, "chat": new.facts(), "migrate_from_chat_id": old.id}})

    def push(self, update: Json) -> None:
        """Add an update for the next poll."""
        self.pending.append({"update_id": next(self._updates)} | update)
        self._wake()
        self._change()

    def number_in(self, chat: Chat) -> int:
        """Return the number of a new message: a group's follow one another, those of private chats share one row.

        Each group has a range of its own here, so that tests find a message by its number.
        """
        if chat.kind == "private":
            return next(self._ids)
        return next(self._numbers.setdefault(chat.id, count(1 + 100_000 * (1 + len(self._numbers)))))

    def find(self, message_id: str) -> Message:
        return next(message for message in self.messages.values() if message.id == int(message_id))

    def facts_of(self, message: Message, *, with_reply: bool = True) -> Json:
        author: Json = _BOT if message.is_the_bots else self.person(message.author)
        facts: Json = {
            "message_id": message.id,
            "date": int(self.now.timestamp()),
            "chat": message.chat.facts(),
            "from": author,
        }
        if message.attached is not None:
            facts |= message.attached
            facts |= {"caption": message.text, "caption_entities": specials(message.text)} if message.text else {}
        elif message.blocks is not None:
            facts |= {"rich_message": {"blocks": message.blocks}}
        elif message.text:
            facts |= {"text": message.text, "entities": specials(message.text)}
        if message.topic is not None:
            facts |= {"message_thread_id": message.topic, "is_topic_message": True}
        replied = self.messages.get((message.chat.id, message.reply_to or 0))
        is_elsewhere = replied is not None and replied.topic != message.topic
        if with_reply and replied is not None and is_elsewhere:
            facts["external_reply"] = {"message_id": replied.id, "chat": facts["chat"], "origin": {"type": "user"}}
        if with_reply and replied is not None and not is_elsewhere:
            facts["reply_to_message"] = self.facts_of(replied, with_reply=False)
        elif with_reply and message.topic is not None:
            facts["reply_to_message"] = {
                "message_id": message.topic,
                "date": facts["date"],
                "chat": facts["chat"],
                "from": _BOT,
                "forum_topic_created": {"name": "topic", "icon_color": 7322096},
            }
        return facts

    # The Bot API.

    async def _answer(self, request: web.Request) -> web.Response:
        method = request.match_info["method"]
        sent = await request.post()
        form = {name: _read(name, value) for name, value in sent.items() if isinstance(value, str)}
        try:
            if request.match_info["token"] != TOKEN:
                raise Refused(401, "Unauthorized")
            self.calls.append((method, form))
            if self.garbage:
                return web.Response(body=self.garbage.pop(0))
            if method in self.broken:
                raise self.broken[method]
            result = await (
                self._write(request, method, form) if method in WRITING else self._do(request, method, form)
            )
        except Refused as refused:
            return web.json_response(refused.body, status=refused.code)
        finally:
            self._change()
        date = {"Date": format_datetime(self.clock, usegmt=True)}
        return web.json_response({"ok": True, "result": result}, headers=date)

    async def _do(self, request: web.Request, method: str, form: Json) -> object:
        match method:
            case "getMe":
                facts = {"can_read_all_group_messages": self.reads_all, "can_join_groups": self.joins_groups}
                return _BOT | facts | {"supports_guest_queries": self.takes_guests}
            case "getUpdates":
                return await self._get_updates(request, form)
            case "getFile":
                path = f"documents/{form['file_id']}"
                if path not in self.shelf.files:
                    raise Refused(400, "Bad Request: wrong file_id or the file is temporarily unavailable")
                if len(self.shelf.files[path]) > 20 * 2**20:
                    raise Refused(400, "Bad Request: file is too big")
                return {"file_id": form["file_id"], "file_unique_id": form["file_id"], "file_path": path}
            case "deleteWebhook":
                self.webhook = ""
                if form.get("drop_pending_updates"):
                    self.violations.append("updates were dropped")
                return True
            case "getWebhookInfo":
                return {"url": self.webhook, "has_custom_certificate": False, "pending_update_count": len(self.pending)}
            case "setMyCommands":
                self.menus[form.get("language_code", "")] = form["commands"]
                return True
            case "sendChatAction":
                if form["action"] != "typing":
                    raise Refused(400, "Bad Request: wrong parameter action in request")
                self._chat(int(form["chat_id"]))
                return True
            case "getChat":
                return self._chat(int(form["chat_id"])).facts()
            case "getChatMember" if form["user_id"] == BOT_ID:
                rank = "administrator" if self.manages_topics else "member"
                return {"status": rank, "user": _BOT, "can_manage_topics": self.manages_topics}
            case "getChatMember":
                name = next((name for name, id in self._people.items() if id == form["user_id"]), None)
                if name is None:
                    raise Refused(400, "Bad Request: PARTICIPANT_ID_INVALID")
                return self._member(name, self._chats[int(form["chat_id"])])
            case "answerInlineQuery":
                await self.answering.wait()
                self.inline_answers[form["inline_query_id"]] = form
                return True
            case "answerCallbackQuery":
                self._change()
                await self.answering.wait()
                if len(form.get("text", "")) > 200:
                    raise Refused(400, "Bad Request: MESSAGE_TOO_LONG")
                self.answers[str(form["callback_query_id"])] = form.get("text", "")
                return True
        raise Refused(404, "Not Found")

    def _member(self, name: str, chat: Chat) -> Json:
        if name not in self.administrators | self.group_administrators.get(chat.name, set()):
            return {"status": "member", "user": self.person(name)}
        return {"status": "administrator", "user": self.person(name), "can_be_edited": False}

    async def _get_updates(self, request: web.Request, form: Json) -> list[Json]:
        if self.webhook:
            raise Refused(409, "Conflict: can't use getUpdates method while webhook is active")
        if self._poll is not None and not self._poll.done():
            self._poll.set_exception(Refused(409, "Conflict: terminated by other getUpdates request; only one may run"))
        self.polls += 1
        if (offset := form.get("offset")) is not None:
            self.pending = [update for update in self.pending if update["update_id"] >= offset]
        if not self.pending and form.get("timeout"):
            self._poll, self._polling = asyncio.get_running_loop().create_future(), request
            self._change()
            try:
                async with asyncio.timeout(form["timeout"]):
                    await self._poll
            except TimeoutError:
                pass
        wanted = form.get("allowed_updates") or []
        return [update for update in self.pending if not wanted or set(update) & set(wanted)][: form.get("limit", 100)]

    async def _write(self, request: web.Request, method: str, form: Json) -> object:
        if "Rich" in method and self.knows == "text":
            raise Refused(404, "Not Found")
        if method == "sendRichMessage" and "chat_id" not in form:
            raise Refused(400, "Bad Request: rich message must be non-empty")
        trouble = self.script(next(self._writes), method)
        kind = trouble.kind if trouble is not None else None
        chat = self._chat_of(form)
        if self._clock.now() < chat.not_before:
            self.violations.append(f"{method} in {chat.name} before its Retry-After was over")
        if kind == "429":
            assert trouble is not None
            wait = max(1, math.ceil(trouble.seconds))
            chat.not_before = self._clock.now() + wait
            raise Refused(429, f"Too Many Requests: retry after {wait}", retry_after=wait)
        if kind == "500":
            raise Refused(500, "Internal Server Error")
        result = None if kind == "timeout" else self._written(method, chat, form, is_lost=kind == "lost")
        if kind in ("timeout", "lost"):
            _cut(request)
        return result

    def _written(self, method: str, chat: Chat, form: Json, *, is_lost: bool) -> object:
        if why := refused_keyboard(form):
            self.violations.append(why)
            raise Refused(400, f"Bad Request: {why}")
        match method:
            case "answerGuestQuery":
                return self._answer_guest(chat, form)
            case "createForumTopic":
                return self._open_topic(chat, str(form["name"]))
            case "sendMessage" | "sendRichMessage":
                topic = form.get("message_thread_id")
                self._check_reply(chat, form, topic)
                if topic is not None and topic not in chat.topics.values():
                    raise Refused(400, "Bad Request: message thread not found")
                text, entities, blocks = self._content(form)
                reply_to = form.get("reply_parameters", {}).get("message_id")
                message = Message(
                    self.number_in(chat), chat, BOT, text, topic, entities, actions(form), reply_to, not is_lost
                )
                message.buttons, message.blocks = others(form), blocks
                self.messages[chat.id, message.id] = message
                self.drafts.pop(chat.id, None)
                return self.facts_of(message, with_reply=False)
            case "editMessageText":
                message = self._own(chat, form, "edit")
                text, entities, blocks = self._content(form)
                shown = message.text, message.entities, message.actions, message.buttons
                if (text, entities, actions(form), others(form)) == shown and same(blocks, message.blocks):
                    if message.is_shown:
                        self.violations.append(UNCHANGED)
                    raise Refused(
                        400, "Bad Request: message is not modified: specified new message content is the same"
                    )
                message.text, message.entities, message.blocks = text, entities, blocks
                message.actions, message.buttons = actions(form), others(form)
                message.is_shown = not is_lost
                return True if "inline_message_id" in form else self.facts_of(message, with_reply=False)
            case "editMessageReplyMarkup":
                message = self._own(chat, form, "edit")
                if (actions(form), others(form)) == (message.actions, message.buttons):
                    raise Refused(
                        400, "Bad Request: message is not modified: specified new message content is the same"
                    )
                message.actions, message.buttons = actions(form), others(form)
                return self.facts_of(message)
            case "deleteMessage":
                del self.messages[chat.id, self._own(chat, form, "delete").id]
                return True
            case "sendMessageDraft" | "sendRichMessageDraft":
                if chat.kind != "private" or not form["draft_id"]:
                    raise Refused(400, "Bad Request: TEXTDRAFT_PEER_INVALID")
                draft = self._content(form)[0] if form.get("text", "rich") else ""
                self.drafts.setdefault(chat.id, []).append(draft)
                self._stoppable[chat.id] = form["draft_id"] if form.get("can_stop") else 0
                return True
        raise AssertionError(method)

    def _open_topic(self, chat: Chat, name: str) -> Json:
        if not chat.facts()["is_forum"]:
            raise Refused(400, "Bad Request: the chat is not a forum")
        if not self.manages_topics:
            raise Refused(400, "Bad Request: not enough rights to create a topic")
        if not 0 < len(name.strip()) <= 128:
            self.violations.append("an invalid topic")
            raise Refused(400, "Bad Request: TOPIC_TITLE_EMPTY")
        topic = self.number_in(chat)
        chat.topics[f"{name} {topic}" if name in chat.topics else name] = topic
        return {"message_thread_id": topic, "name": name, "icon_color": 7322096}

    def _chat_of(self, form: Json) -> Chat:
        if "guest_query_id" in form:
            if form["guest_query_id"] not in self._guest_queries:
                raise Refused(400, "Bad Request: QUERY_ID_INVALID")
            return self._guest_queries[form["guest_query_id"]].chat
        if "inline_message_id" in form:
            if form["inline_message_id"] not in self._guest_messages:
                raise Refused(400, "Bad Request: MESSAGE_ID_INVALID")
            return self._guest_messages[form["inline_message_id"]].chat
        return self._chat(int(form["chat_id"]))

    def _answer_guest(self, chat: Chat, form: Json) -> Json:
        result, id = form["result"], str(next(self._ids))
        content = dict(result["input_message_content"])
        text, entities, _ = self._content({"text": content.pop("message_text")} | content)
        if result["type"] != "article" or not result["title"] or "reply_markup" in result:
            self.violations.append("a wrong answer to a guest query")
        message = Message(self.number_in(chat), chat, BOT, text, entities=entities)
        del self._guest_queries[form["guest_query_id"]]
        self.messages[chat.id, message.id] = self._guest_messages[id] = message
        return {"inline_message_id": id}

    def _chat(self, id: int) -> Chat:
        chat = self._chats.get(id)
        if chat is None:
            raise Refused(400, "Bad Request: chat not found")
        if chat.migrated_to is not None:
            raise Refused(
                400,
                "Bad Request: group chat was upgraded to a supergroup chat",
                migrate_to_chat_id=chat.migrated_to,
            )
        if chat.gone is not None:
            raise Refused(*chat.gone)
        return chat

    def _own(self, chat: Chat, form: Json, verb: str) -> Message:
        if "inline_message_id" in form:
            return self._guest_messages[form["inline_message_id"]]
        message = self.messages.get((chat.id, int(form["message_id"])))
        if message is None:
            raise Refused(400, f"Bad Request: message to {verb} not found")
        if not message.is_the_bots:
            raise Refused(400, f"Bad Request: message can't be {verb}ed")
        return message

    def _check_reply(self, chat: Chat, form: Json, topic: int | None) -> None:
        reply = form.get("reply_parameters", {})
        if reply and (chat.id, reply["message_id"]) not in self.messages:
            is_here = self._deleted.get((chat.id, reply["message_id"])) == topic
            if not (reply.get("allow_sending_without_reply") and is_here):
                raise Refused(400, "Bad Request: message to be replied not found")
            del form["reply_parameters"]

    def _content(self, form: Json) -> tuple[str, tuple[Entity, ...], list[Json] | None]:
        """Return the text of a message, with its entities or its blocks; or raise Telegram's error."""
        if "rich_message" not in form:
            return *self._text(form), None
        if self.knows == "text":
            raise Refused(400, "Bad Request: message text is empty")
        if {"text", "entities", "link_preview_options"} & set(form):
            self.violations.append("text beside blocks")
        why = refused_message(form["rich_message"] if self.knows == "blocks" else None)
        if why is not None:
            if self.knows == "blocks":
                self.violations.append(why)
            raise Refused(400, f"Bad Request: {why}")
        if self.refuses_blocks:
            raise Refused(400, "Bad Request: RICH_MESSAGE_INVALID")
        if not form["rich_message"].get("skip_entity_detection"):
            self.violations.append("names in blocks are mentions")
        blocks = form["rich_message"]["blocks"]
        return text_of(blocks), (), blocks

    def _text(self, form: Json) -> tuple[str, tuple[Entity, ...]]:
        """Return the stripped text and its entities, or raise Telegram's error."""
        said = str(form["text"])
        entities = [
            Entity(each["type"], each["offset"], each["length"], each.get("url"), each.get("language"))
            for each in form.get("entities", [])
        ]
        if "parse_mode" in form:
            self.violations.append("a parse_mode")
        if "draft_id" not in form and not form.get("link_preview_options", {}).get("is_disabled"):
            self.violations.append("a link preview")
        if self.refuses_entities and entities:
            raise Refused(400, "Bad Request: ENTITY_BOUNDS_INVALID")
        if why := refused(said, entities):
            self.violations.append(why)
            raise Refused(400, f"Bad Request: can't parse entities: {why}")
        left = utf16_units(said) - utf16_units(said.lstrip())
        text = said.strip()
        length = utf16_units(text)
        if not text:
            raise Refused(400, "Bad Request: message text is empty")
        if length > LIMIT:
            self.violations.append(f"a text of {length}")
            raise Refused(400, "Bad Request: message is too long")
        if len(entities) > MOST_ENTITIES:
            self.violations.append(f"{len(entities)} entities")
        return text, tuple(left_over for each in entities if (left_over := fitted(each, left, length)))

    def _change(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _wake(self) -> None:
        if self._poll is not None and not self._poll.done():
            self._poll.set_result(None)


_QUERIES = {"guest_query_id", "inline_query_id"}
_TEXTS = {"text", "callback_query_id", "language_code", "name", "action", "inline_message_id"} | _QUERIES
_BOT: Json = {"id": BOT_ID, "is_bot": True, "first_name": "ChatGLM", "username": BOT}


def _markdown(message: Message) -> str:
    return markdown(message.text, message.entities) if message.blocks is None else markdown_of(message.blocks)


def _read(name: str, value: str) -> Any:
    """Parse a form field; all but text and string ids is JSON."""
    return value if name in _TEXTS else json.loads(value)


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
