"""The values that all packages share: messages, requests, events, exchanges."""

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Literal, get_args

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ChannelKey:
    """The place of a conversation: everything stored belongs to one.

    >>> str(ChannelKey("slack", "C01", "1718.2"))
    'slack:C01:1718.2'
    """

    platform: str
    channel: str
    thread: str | None = None

    def __str__(self) -> str:
        return ":".join(part for part in (self.platform, self.channel, self.thread) if part is not None)


@dataclass(frozen=True, slots=True)
class Author:
    """A person (or a bot) on one platform; `id` is the platform's own.

    >>> Author("discord", "1234", "Mei").key
    'discord:1234'
    """

    platform: str
    id: str
    name: str
    roles: frozenset[str] = frozenset()
    is_bot: bool = False

    @property
    def key(self) -> str:
        """The person's id in config.toml, in `access.admins` for example."""
        return f"{self.platform}:{self.id}"

    @property
    def is_group(self) -> bool:
        """Whether several people may write as this author: on Telegram as a group or a channel, whose ids are negative."""
        return self.id.startswith("-")


class FileFault(StrEnum):
    """Why nothing of a file is read."""

    KIND = "kind"  # it contains no text that can be read
    PICTURE = "picture"  # the model sees none
    MANY = "many"  # more pictures than the model sees at once
    SOUND = "sound"  # or a film
    LARGE = "large"
    LOCKED = "locked"  # with a password
    DAMAGED = "damaged"
    EMPTY = "empty"
    SLOW = "slow"
    MISSING = "missing"  # its platform does not hand it out
    OFF = "off"  # no files are read


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a model gets it: the bytes of a file, its sides in pixels."""

    media_type: str
    data: bytes = field(repr=False)
    width: int
    height: int

    @property
    def url(self) -> str:
        """Its bytes as a data URL.

        >>> Picture("image/png", b"bytes", 1, 1).url
        'data:image/png;base64,Ynl0ZXM='
        """
        return f"data:{self.media_type};base64,{b64encode(self.data).decode()}"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file of a message, or with `is_quoted` of the message that it quotes.

    `source` is where it is fetched from.  `text` is what was read of it, or "" until then;
    with `is_cut` that is its beginning only.  One with `is_picture` was read as a picture, which is in
    `picture` where the store was asked for it, unless it was deleted.  `id` is the platform's own, "" where it has none.
    """

    name: str
    media_type: str = ""
    size: int = 0  # bytes, as far as the platform says
    source: str = ""
    text: str = ""
    is_cut: bool = False
    fault: FileFault | None = None
    is_quoted: bool = False
    is_picture: bool = False
    picture: Picture | None = None
    id: str = ""

    @property
    def titled_text(self) -> str:
        """Its name and its text, as the model reads them."""
        return f"{self.name}:\n{self.text}"

    @property
    def is_read(self) -> bool:
        """Whether there is nothing more to do about it."""
        return bool(self.text) or self.is_picture or self.fault is not None

    def is_same(self, other: "Attachment") -> bool:
        """Return whether both are the same file of a message; without ids, by name and size."""
        if self.id and other.id:
            return self.id == other.id
        return (self.name, self.size) == (other.name, other.size)


def keep_known(files: Iterable[Attachment], known: Iterable[Attachment]) -> tuple[Attachment, ...]:
    """Return the files of an edited message, those that it had before with what is known of them.

    >>> old, twin = Attachment("a.txt", text="one"), Attachment("a.txt", text="two")
    >>> [file.text for file in keep_known([Attachment("a.txt"), Attachment("b.txt"), Attachment("a.txt")], [old, twin])]
    ['one', '', 'two']
    """
    left, kept = list(known), []
    for file in files:
        number = next((number for number, each in enumerate(left) if each.is_same(file)), None)
        kept.append(file if number is None else left.pop(number))
    return tuple(kept)


class FurtherKind(StrEnum):
    """The relation of a further message to its question."""

    CONTINUATION = "continuation"  # more of it, by the same author
    FORWARD = "forward"  # another person's words, which its author sends along
    BEFORE = "before"  # said before it, by anybody
    LINKED = "linked"  # a message that it links to


# Those of other messages, which the question is read with.
KINDS_OF_OTHERS = (FurtherKind.BEFORE, FurtherKind.LINKED)


@dataclass(frozen=True, slots=True)
class FurtherMessage:
    """A message that belongs to a question beside the one that asks it, from a channel of the same platform.

    `thread` is the channel's thread where it was said; None also if it is not known.
    """

    id: str
    channel: str
    author: Author
    text: str
    sent_at: datetime
    kind: FurtherKind = FurtherKind.CONTINUATION
    files: tuple[Attachment, ...] = ()
    thread: str | None = None


@dataclass(frozen=True, slots=True)
class IncomingMessage:
    """A message to the bot, without its platform's notation.

    `id` is the platform's own; like a channel's it has no space.  `quoted` is the text that the
    message replies to, forwards or comments on; `quoted_id` is that message's id on the
    platform where it is known, and `quotes_bot` is set where it is one of the bot's own.
    `further` are the messages that belong to it.  `reply_address` is the platform's own word for a question that is
    no message of its channel: where its reply goes.  It may be a secret.  Not stored: `album`, which messages that
    were sent together share, `is_forward`, and `is_addressed`, without which a word such as "clear" is no command:
    the message mentions the bot or replies to it, or is a direct one.
    """

    id: str
    channel: ChannelKey
    author: Author
    text: str
    sent_at: datetime
    server: str | None = None
    is_direct: bool = False
    locale: str | None = None
    quoted: str | None = None
    quoted_id: str | None = None
    quotes_bot: bool = False
    files: tuple[Attachment, ...] = ()
    further: tuple[FurtherMessage, ...] = ()
    album: str | None = None
    is_forward: bool = False
    is_addressed: bool = field(default=True, compare=False)
    reply_address: str | None = field(default=None, repr=False)

    @property
    def continuations(self) -> tuple[FurtherMessage, ...]:
        """The messages that are more of it, in order."""
        return tuple(each for each in self.further if each.kind in (FurtherKind.CONTINUATION, FurtherKind.FORWARD))

    @property
    def whole(self) -> "IncomingMessage":
        """The message with the texts, quotations and files of its continuations, as if it had been sent at once."""
        if not (more := self.continuations):
            return self
        texts = [self.text, *(each.text for each in more if each.kind is FurtherKind.CONTINUATION)]
        quoted = [self.quoted or "", *(each.text for each in more if each.kind is FurtherKind.FORWARD)]
        return replace(
            self,
            text="\n".join(filter(None, texts)),
            quoted="\n\n".join(filter(None, quoted)) or None,
            files=(*self.files, *(file for each in more for file in each.files)),
            further=tuple(each for each in self.further if each not in more),
        )


ScopeLevel = Literal["user", "role", "thread", "channel", "server", "platform"]
# From the narrowest: a setting of an earlier one overrides those of later ones.
LEVELS: tuple[ScopeLevel, ...] = get_args(ScopeLevel)


@dataclass(frozen=True, slots=True)
class Scope:
    """The reach of a setting; `id` is written as in config.toml.

    >>> Scope("thread", "discord:123:456")
    Scope(level='thread', id='discord:123:456')
    """

    level: ScopeLevel
    id: str


@dataclass(frozen=True, slots=True)
class SettingChange:
    """A setting as it was set in the chat; without value and text it was cleared.

    `value` is a name or a number, `text` is what people write freely; `text_author` is the key of
    who wrote it, where `author` has only restored it.
    """

    scope: Scope
    setting: str
    value: str | None
    text: str | None
    author: Author
    at: datetime
    text_author: str | None = None

    @property
    def is_cleared(self) -> bool:
        return self.value is None and self.text is None


@dataclass(frozen=True, slots=True, order=True)
class RunningBot:
    """A bot that shares the database with others: its host and process, its version, and the platforms it serves."""

    name: str
    version: str
    platforms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: Role
    content: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as a model's tokenizer splits it, piece by piece; `end` are the ids after a prompt's own."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    end: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of sampling.

    `temperature` 0 takes the likeliest token; `top_k` 0 and `top_p` 1 disable those
    cuts; `max_tokens` None is limited by the context only.
    """

    temperature: float = 0.95
    top_k: int = 50
    top_p: float = 0.7
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One call of the model.

    `channel` and `user` are opaque names: requests are served fairly between them.  `model`
    is the name of a `[models.NAME]`; None is `[engine]`.  With `has_fallback` another model
    takes the request if this one cannot begin: it fails at once instead of waiting for a server.
    `prefix` is the name of one of the P-Tuning prefixes loaded beside a model; "" is its own.
    With `is_whole` a fallback gets all of the messages or none, and is one of `models`, if there are
    any: names of tables, or of models.
    """

    messages: tuple[ChatMessage, ...]
    params: SamplingParams = SamplingParams()
    channel: str = ""
    user: str = ""
    model: str | None = None
    has_fallback: bool = False
    prefix: str = ""
    is_whole: bool = False
    models: tuple[str, ...] = ()


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class UsageSum:
    """What was used of the model: answers, their tokens, and the milliseconds in which they were written."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    milliseconds: int = 0

    def __add__(self, other: "UsageSum") -> "UsageSum":
        return UsageSum(
            self.answers + other.answers,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.milliseconds + other.milliseconds,
        )

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def seconds(self) -> int:
        return self.milliseconds // 1000


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits: `position` 1 is next; `wait` is an estimate in seconds.

    With `is_model_changing` it waits for another model to be loaded, with `is_model_loading`
    for a model server that still loads.
    """

    position: int
    wait: float | None = None
    is_model_changing: bool = False
    is_model_loading: bool = False


@dataclass(frozen=True, slots=True)
class Thought:
    """More of the model's reasoning before its answer, which is no part of it.

    `seconds` since the reasoning began are added for the reader.
    """

    text: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Fallback:
    """From here on `model` answers in place of the one asked for; it may still wait.

    Its context had no room for the `left_out` oldest messages.
    """

    model: str
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """More of the model's answer; text once sent never changes."""

    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """The bot's own words, shown below the model's."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every stream."""

    reason: FinishReason
    usage: Usage = Usage()


EngineEvent = Queued | Fallback | Thought | Delta | Finished
ReplyEvent = Queued | Thought | Delta | Finished | Notice


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The loaded model; known once the engine is entered."""

    model: str
    backend: str
    quantization: str
    dtype: str
    device: str
    context_length: int  # tokens, prompt and answer together
    reads_names: bool = True  # False for one that takes "Mei: hello" for the text of a message
    most_pictures: int = 0  # that a prompt may have; 0 for one that sees none


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The engine's load and progress.

    `since_progress` is the age in seconds of the last completed step, or of the oldest
    work after an idle time; 0 while idle.  `down` is the reason if it will never answer again.
    """

    running: int
    waiting: int
    tokens_per_second: float | None = None  # recent throughput of all requests together
    since_progress: float = 0.0
    down: str | None = None
    fault: str | None = None  # the reason while it cannot answer, which may pass
    is_changing: bool = False  # the model is being replaced; new requests wait for the next one
    slots: int = 0  # most requests that run at once
    wait: float | None = None  # estimated seconds until the current queue is served
    device_bytes: int = 0  # memory held on accelerators
    loaded: float | None = None  # share of the new model that is read, while it loads

    # Totals since the engine was entered:
    tokens: int = 0
    steps: int = 0
    started: int = 0  # requests that left the queue
    waited: float = 0.0  # seconds they spent in the queue, summed


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One of several models; `fault` is the reason if it is not loaded, which leaves the rest None.

    `base` is the model whose weights it shares; the load is then that of both.  `bytes_needed`
    is the memory that it takes on all devices, 0 where that is not known.
    """

    name: str
    info: EngineInfo | None = None
    load: EngineLoad | None = None
    fault: str | None = None
    base: str = ""
    bytes_needed: int = 0


class Kind(StrEnum):
    CHAT = "chat"
    COMMAND = "command"


class Status(StrEnum):
    """Stored state of an exchange; bot/lifecycle.py lists the transitions."""

    OPEN = "open"
    ANSWERED = "answered"
    DELIVERED = "delivered"
    FAILED = "failed"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's `text`, and the bot's own words beside it.

    `model` is the name of the `[models.NAME]` that wrote it, "" for `[engine]`; `persona` that of the `[personas.NAME]`,
    "" for none, and `OWN_PERSONA` for one that was written in the chat.
    """

    text: str
    notice: str = ""
    reason: FinishReason = FinishReason.STOP
    usage: Usage = Usage()
    model: str = ""
    persona: str = ""


# What stands for a persona without a name, and for none where each answer is listed with one; no name of one is so.
OWN_PERSONA = "*"
NO_PERSONA = "-"


@dataclass(slots=True)
class Part:
    """One platform message that carries a part of a reply; `id` is None until it was sent.

    `lost` counts the messages that were in this place and are gone; `replaces` is the id of the last one.
    """

    id: str | None = None
    is_recorded: bool = False
    replaces: str | None = None
    lost: int = 0


# Why an exchange failed whose message could not be decrypted when it was claimed.
UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One message to the bot and the reply to it: one row in the store.

    `parts` are the platform's ids of the messages that carry the reply, in order.
    `fence` is the number of its latest claim (see bot/lifecycle.py).  `is_unreadable` tells that the message
    could not be decrypted when it was claimed: it is empty.
    """

    id: int
    message: IncomingMessage
    kind: Kind
    status: Status
    seed: int
    answer: Answer | None = None
    parts: tuple[str, ...] = ()
    fence: int = 0
    is_unreadable: bool = False


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What an operator should know of a database that is open.

    `unencrypted` exchanges of an older version are not encrypted yet, and then the file is rewritten (`is_rewriting`);
    `lost` ones had no keys any more at the start and were cleared.
    """

    unencrypted: int = 0
    is_rewriting: bool = False
    lost: int = 0


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """Earlier questions that are not answered yet: of the author anywhere, of everybody in the channel."""

    author: int = 0
    channel: int = 0


class Action(StrEnum):
    """The effect of a button under a reply."""

    STOP = "stop"
    RETRY = "retry"
    UP = "up"
    DOWN = "down"


class Vote(StrEnum):
    """A person's opinion of an answer, and the button that gives it."""

    UP = Action.UP.value
    DOWN = Action.DOWN.value


class VoteResult(StrEnum):
    """A person's vote after a button was pressed."""

    UP = Vote.UP.value
    DOWN = Vote.DOWN.value
    TAKEN_BACK = "taken_back"
    NO_ANSWER = "no_answer"  # it was deleted, or another one is being written
    REPEATED = "repeated"  # the press or the reaction was delivered again: it changes nothing


Controls = frozenset[Action]
