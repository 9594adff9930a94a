"""The table of slash commands: names, options, and how a message calls one."""

import difflib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bot.chat.access import Access
from bot.chat.exchanges import Exchanges
from bot.chat.i18n import Translate
from bot.chat.quotas import Quotas
from bot.chat.settings import ChatSettings, Choices
from bot.chat.sign_in import SignIn
from bot.config.reload import ConfigWatcher
from bot.domain import Exchange, IncomingMessage, Kind
from bot.engine.base import Engine
from bot.observability.health import Components


@dataclass(frozen=True, slots=True)
class CommandContext:
    """One use of a command, and the parts it may work with."""

    exchange: Exchange
    arguments: str
    translate: Translate
    access: Access
    exchanges: Exchanges
    engine: Engine
    settings: ChatSettings
    choices: Choices
    quotas: Quotas
    sign_in: SignIn
    watcher: ConfigWatcher | None = None
    components: Components | None = None

    @property
    def is_by_admin(self) -> bool:
        return self.access.is_admin(self.exchange.message.author)


# Carries a command out and returns the sentence that answers it, in Markdown.
Handler = Callable[[CommandContext], Awaitable[str]]


# Returns what an option may be where a message was sent, in the order in which it is offered.
Offers = Callable[[ChatSettings, IncomingMessage], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Option:
    """A word or a text after a command's name; where a platform completes it, it offers `offers`."""

    name: str
    summary: str
    offers: Offers | None = None
    is_required: bool = True


@dataclass(frozen=True, slots=True)
class Subcommand:
    """A word after a command's name that says what to do, perhaps with an option."""

    name: str
    summary: str
    option: Option | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """`summary` is the English msgid; a platform's menu shows it translated."""

    name: str
    summary: str
    run: Handler
    is_for_admins: bool = False
    argument: str = ""  # the one word that it may take
    option: Option | None = None
    subcommands: tuple[Subcommand, ...] = ()

    @property
    def usage(self) -> str:
        """What may follow the name, for documentation: "[show|use NAME]"."""
        if self.option is not None:
            return f"[{self.option.name.upper()}]"
        words = [f"{each.name} {each.option.name.upper()}" if each.option else each.name for each in self.subcommands]
        return f"[{'|'.join(words)}]" if words else self.argument


COMMANDS: dict[str, Command] = {}


def command(
    name: str,
    summary: str,
    *,
    for_admins: bool = False,
    argument: str = "",
    takes_words: bool = False,
    option: Option | None = None,
    subcommands: tuple[Subcommand, ...] = (),
) -> Callable[[Handler], Handler]:
    """Register a function as the command `/name`; with `for_admins`, others get a refusal.

    Unless it has an argument, an option or subcommands, or `takes_words`, it refuses more words after
    its name: "/clear the table, please" means something else.
    """

    def register(handler: Handler) -> Handler:
        async def run(context: CommandContext) -> str:
            translate = context.translate
            if for_admins and not context.is_by_admin:
                return translate("Only admins may do that.")
            if context.arguments and not (argument or takes_words or option or subcommands):
                return translate("Nothing was done: /{name} takes no text after it. Please send /{name} alone.").format(
                    name=name
                )
            return await handler(context)

        COMMANDS[name] = Command(name, summary, run, for_admins, argument, option, subcommands)
        return handler

    return register


def menu() -> list[Command]:
    """Return the commands that a platform's menu shows; an admin types the others as a message."""
    return [command for command in COMMANDS.values() if not command.is_for_admins]


def called_by(message: IncomingMessage) -> tuple[Command, str] | None:
    """Return the command that a message calls, and the rest of its text."""
    return parse(message.text, is_addressed=message.is_addressed)


def parse(text: str, *, is_addressed: bool = True) -> tuple[Command, str] | None:
    """Return the command that a text calls, and the rest of it.

    A text that is only a command's name (and its argument, if it has one) is that command too, if it
    is addressed to the bot: some places cannot send slash commands, and people write "@bot clear".

    >>> import bot.chat.commands  # fills the table
    >>> called, args = parse("/help@our_bot clear")
    >>> called.name, args
    ('help', 'clear')
    >>> parse("Clear")[0].name
    'clear'
    >>> parse("forget me")[0].name
    'forget'
    >>> parse("clear the table, please"), parse("/etc/hosts is what?"), parse("")
    (None, None, None)
    >>> parse("clear", is_addressed=False), parse("/clear", is_addressed=False)[0].name
    (None, 'clear')
    """
    first, *rest_of_it = text.strip().split(None, 1) or [""]
    rest = "".join(rest_of_it)
    if first.startswith("/"):
        name = first[1:].partition("@")[0]
        called = COMMANDS.get(name.lower()) or (_unknown(name) if name.isalpha() and not rest else None)
    else:
        called = COMMANDS.get(first.lower()) if is_addressed else None
        if called and rest.strip().lower() not in ("", called.argument):
            called = None
    return (called, rest.strip()) if called else None


def is_forget(exchange: Exchange) -> bool:
    """Return whether this is /forget me, of which no trace stays either."""
    called = called_by(exchange.message)
    return called is not None and called[0].name == "forget" and called[1].lower() == called[0].argument


def is_open_retry(exchange: Exchange) -> bool:
    """Return whether this is a /retry that was not carried out yet."""
    if exchange.kind is not Kind.COMMAND or exchange.answer is not None:
        return False
    called = called_by(exchange.message)
    return called is not None and called[0].name == "retry" and not called[1]


def offers(text: str, settings: ChatSettings, message: IncomingMessage) -> list[str]:
    """Return what may stand in place of the last, unfinished word of a command."""
    called = parse(text)
    if called is None:
        return []
    command, arguments = called
    option, typed = command.option, arguments
    if command.subcommands:
        word, *rest = arguments.split(None, 1) or [""]
        typed = "".join(rest)
        option = next((each.option for each in command.subcommands if each.name == word), None)
    if option is None or option.offers is None:
        return []
    return [each for each in option.offers(settings, message) if each.startswith(typed.strip().lower())]


def _unknown(name: str) -> Command:
    async def run(context: CommandContext) -> str:
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
        if near:
            return context.translate("Unknown command /{name}; did you mean /{near}?").format(name=name, near=near[0])
        return context.translate("Unknown command /{name}; /help lists all commands.").format(name=name)

    return Command(name, "", run)
