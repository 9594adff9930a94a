"""The slash commands: one async generator each, the same on every platform."""

import difflib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps

from bot import __version__
from bot.chat.access import Access
from bot.chat.conversation import Conversations
from bot.chat.i18n import Translate
from bot.config.reload import ConfigWatcher
from bot.domain import Exchange, Notice, ReplyEvent
from bot.engine.base import Engine
from bot.errors import NotErased
from bot.observability import process


@dataclass(frozen=True, slots=True)
class Call:
    """One use of a command, and the parts it may work with."""

    exchange: Exchange
    args: str
    translate: Translate
    access: Access
    conversations: Conversations
    engine: Engine
    live: ConfigWatcher | None = None

    @property
    def is_by_admin(self) -> bool:
        return self.access.is_admin(self.exchange.message.author)


Run = Callable[[Call], AsyncGenerator[ReplyEvent, None]]


@dataclass(frozen=True, slots=True)
class Command:
    """`summary` is the English msgid; a platform's menu shows it translated."""

    name: str
    summary: str
    run: Run
    is_for_admins: bool = False
    argument: str = ""  # the one word that it may take


COMMANDS: dict[str, Command] = {}


def command(
    name: str, summary: str, *, for_admins: bool = False, argument: str = "", takes_words: bool = False
) -> Callable[[Run], Run]:
    """Make a function the command `/name`; one for admins does nothing for anybody else.

    Unless it has an argument or `takes_words`, it does nothing either where more follows
    its name: "/clear the table, please" means something else.
    """

    def not_alone(call: Call) -> str | None:
        why = call.translate("I did nothing: /{name} stands alone, and more followed it.")
        return why.format(name=name) if call.args else None

    def register(run: Run) -> Run:
        careful = run if argument or takes_words else _unless(not_alone, run)
        if for_admins:
            careful = _unless(_of_others, careful)
        COMMANDS[name] = Command(name, summary, careful, for_admins, argument)
        return run

    return register


def _unless(refusal: Callable[[Call], str | None], run: Run) -> Run:
    """`run`, but for the calls that are told a sentence instead."""

    @wraps(run)
    async def guarded(call: Call) -> AsyncGenerator[ReplyEvent, None]:
        if why := refusal(call):
            yield Notice(why)
            return
        async with aclosing(run(call)) as events:
            async for event in events:
                yield event

    return guarded


def _of_others(call: Call) -> str | None:
    return None if call.is_by_admin else call.translate("Only admins may do that.")


def menu() -> list[Command]:
    """Those that a platform shows everybody; an admin types the others as a message."""
    return [command for command in COMMANDS.values() if not command.is_for_admins]


def gettext_noop(text: str) -> str:
    """Mark a text for the catalogues where nobody is there yet to read it."""
    return text


def parse(text: str) -> tuple[Command, str] | None:
    """Find the command a message calls, and the rest of its text.

    A message that is nothing but a command's name (and its argument, if it has one) is
    that command too: where slash commands cannot be typed, "@bot clear" can.

    >>> called, args = parse("/help@our_bot clear")
    >>> called.name, args
    ('help', 'clear')
    >>> parse("Clear")[0].name
    'clear'
    >>> parse("forget me")[0].name
    'forget'
    >>> parse("clear the table, please"), parse("/etc/hosts is what?"), parse("")
    (None, None, None)
    """
    first, _, rest = text.strip().partition(" ")
    if first.startswith("/"):
        name = first[1:].partition("@")[0]
        called = COMMANDS.get(name.lower()) or (_unknown(name) if name.isalpha() and not rest else None)
    else:
        called = COMMANDS.get(first.lower())
        if called and rest.strip().lower() not in ("", called.argument):
            called = None
    return (called, rest.strip()) if called else None


def is_forget(exchange: Exchange) -> bool:
    """Whether this message asks to forget its author: no trace of it stays either."""
    called = parse(exchange.message.text)
    return called is not None and called[0].name == "forget" and called[1].lower() == called[0].argument


def is_retry(exchange: Exchange) -> bool:
    """Whether this message asks for another one to be answered again."""
    called = parse(exchange.message.text)
    return called is not None and called[0].name == "retry" and not called[1]


@command("clear", gettext_noop("Forget this conversation"))
async def clear(call: Call) -> AsyncGenerator[ReplyEvent, None]:
    if not call.access.may_clear(call.exchange.message.author):
        yield Notice(call.translate("Only admins may make me forget a conversation."))
        return
    count, rest = await _deleted(call, call.conversations.clear(call.exchange.message.channel, call.exchange))
    if count:
        yield Notice(call.translate("Forgotten: everything said here ({count}).").format(count=count) + rest)
    else:
        yield Notice(call.translate("There was nothing to forget here."))


@command("forget", gettext_noop("Forget all that you ever said to me, everywhere: /forget me"), argument="me")
async def forget(call: Call) -> AsyncGenerator[ReplyEvent, None]:
    if not is_forget(call.exchange):
        yield Notice(
            call.translate(
                "Say `forget me` to me, and I delete all that you ever said to me, in every channel, and my answers "
                "to it. `/clear` forgets this conversation only."
            )
        )
        return
    count, rest = await _deleted(call, call.conversations.forget(call.exchange))
    if count:
        said = call.translate("Forgotten: all that you ever said to me ({count}), and my answers.").format(count=count)
        yield Notice(said + rest)
    else:
        yield Notice(call.translate("I remember nothing that you said to me."))


async def _deleted(call: Call, deletion: Awaitable[int]) -> tuple[int, str]:
    """How much it deleted, and what is still to be said about that."""
    try:
        return await deletion, ""
    except NotErased as error:
        rest = call.translate(
            "No answer of mine will use it again, but the file of my database still holds the words: another program is "
            "using it, or the disk is full. I remove them by myself as soon as I can."
        )
        return error.count, f"\n\n{rest}"


@command("stop", gettext_noop("Stop the answer that is being written"))
async def stop(call: Call) -> AsyncGenerator[ReplyEvent, None]:
    message = call.exchange.message
    active = call.conversations.active(message.channel)
    mine = [exchange for exchange in active if call.access.may_control(message.author, exchange)]
    for exchange in mine:
        call.conversations.stop(exchange)
    if mine:
        yield Notice(call.translate("Stopped."))
    elif active:
        yield Notice(call.translate("Only the person who asked, and admins, may stop this answer."))
    else:
        yield Notice(call.translate("Nothing is being answered here."))


@command("retry", gettext_noop("Answer the last question again"))
async def retry(call: Call) -> AsyncGenerator[ReplyEvent, None]:
    # A question that can be answered again was taken up before this runs: see dispatch.
    yield Notice(call.translate("There is no question of yours here that I could answer again."))


@command("status", gettext_noop("Tell which model runs, and how busy it is"))
async def status(call: Call) -> AsyncGenerator[ReplyEvent, None]:
    info, load = call.engine.info, call.engine.load
    lines = [
        call.translate("Model: {model} ({quantization}, {dtype}, {device}), context of {context} tokens").format(
            model=info.model,
            quantization=info.quantization,
            dtype=info.dtype,
            device=info.device,
            context=info.context_length,
        ),
        call.translate("Answering: {running}, waiting: {waiting}").format(running=load.running, waiting=load.waiting),
    ]
    if load.is_changing:
        lines.append(call.translate("The model is being changed; new questions wait for the next one."))
    if load.tokens_per_second is not None:
        lines.append(call.translate("Speed: {speed} tokens/s").format(speed=round(load.tokens_per_second)))
    lines.append(call.translate("Version: {version}").format(version=__version__))
    if call.is_by_admin:
        if call.access.is_paused:
            lines.append(call.translate("Paused: new questions are turned away."))
        lines.append(call.translate("Memory: {mebibytes} MiB").format(mebibytes=process.memory() >> 20))
        lines.append(call.translate("Up for: {uptime}").format(uptime=_lasting(process.uptime(), call.translate)))
        lines.append(call.translate("Runs on: {versions}").format(versions=", ".join(process.versions())))
        lines += _reread(call)
    yield Notice("\n".join(f"- {line}" for line in lines))


def _lasting(time: timedelta, translate: Translate) -> str:
    """Write it in the reader's language: Python would name the days in English.

    >>> _lasting(timedelta(hours=26), str), _lasting(timedelta(seconds=2), str)
    ('1 d 2:00:00', '0:00:02')
    """
    hours = str(timedelta(seconds=time.seconds))
    return translate("{days} d {hours}").format(days=time.days, hours=hours) if time.days else hours


def _reread(call: Call) -> Iterator[str]:
    """What came of the last change of config.toml."""
    last = call.live.last_result if call.live is not None else None
    if last is None:
        return
    yield call.translate("Settings read again: {time}").format(time=f"{last.at:%Y-%m-%d %H:%M:%S} UTC")
    if last.changed:
        yield call.translate("Changed by that: {settings}").format(settings=", ".join(last.changed))
    if last.needs_restart:
        yield call.translate("Needs a restart: {settings}").format(settings=", ".join(last.needs_restart))
    if last.rejected:
        yield call.translate("Refused, so the old settings stay: {mistakes}").format(mistakes="; ".join(last.rejected))
    if last.failure is not None:
        yield call.translate("The model was not changed: {why}").format(why=last.failure)


@command("help", gettext_noop("List the commands"), takes_words=True)
async def help_(call: Call) -> AsyncGenerator[ReplyEvent, None]:
    offered = COMMANDS.values() if call.is_by_admin else menu()
    lines = [f"- `/{each.name}` – {call.translate(each.summary)}" for each in offered]
    yield Notice("\n".join([call.translate("Ask me anything, or use a command:"), "", *lines]))


@command("pause", gettext_noop("Turn new questions away"), for_admins=True)
async def pause(call: Call) -> AsyncGenerator[ReplyEvent, None]:
    call.access.pause()
    yield Notice(
        call.translate("Paused: answers under way go on, new questions are turned away, until /resume or a restart.")
    )


@command("resume", gettext_noop("Take questions again"), for_admins=True)
async def resume(call: Call) -> AsyncGenerator[ReplyEvent, None]:
    yield Notice(
        call.translate("I take questions again.") if call.access.resume() else call.translate("I was not paused.")
    )


@command("limits", gettext_noop("Tell which limits are in force"), for_admins=True)
async def limits(call: Call) -> AsyncGenerator[ReplyEvent, None]:
    lines = [f"- `{name} = {int(value) if value == int(value) else value}`" for name, value in call.access.limits]
    yield Notice("\n".join([call.translate("From config.toml, [limits]; 0 is no limit:"), "", *lines]))


def _unknown(name: str) -> Command:
    async def run(call: Call) -> AsyncGenerator[ReplyEvent, None]:
        sentence = call.translate("There is no command /{name}; /help lists those there are.").format(name=name)
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
        if near:
            sentence = call.translate("There is no command /{name}; did you mean /{near}?").format(
                name=name, near=near[0]
            )
        yield Notice(sentence)

    return Command(name, "", run)
