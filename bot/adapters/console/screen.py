"""What the terminal shows: replies that stream as Markdown, notices, and plain text in a pipe."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.table import Table

from bot.errors import PlatformUnavailable
from bot.util.text import clean

_DRAWINGS_PER_SECOND = 12


class Reply(Protocol):
    """One reply on the screen, while its stream is open."""

    def wait(self, text: str) -> None:
        """Show a sentence until the first text."""

    def add(self, text: str) -> None:
        """Show more of the model's text."""


class Screen:
    """Prints the chat: to a terminal with Markdown, wrapped at words; into a pipe as the text is."""

    def __init__(self, target: TextIO, *, is_plain: bool) -> None:
        self.is_terminal = target.isatty() and not is_plain
        # highlight would colour numbers in answers; soft_wrap leaves a pipe's lines alone.
        self.console = Console(file=target, highlight=False, soft_wrap=not self.is_terminal)

    @property
    def mark(self) -> str:
        """Return what marks the bot's replies, as the prompt marks the user's text."""
        return "*" if self.console.options.ascii_only else "●"

    def say(self, text: str, *, end: str = "\n") -> None:
        """Print a quiet line that is no part of the conversation."""
        with _writing():
            self.console.print(clean(text), end=end, style="dim" if self.is_terminal else None, markup=False)

    def notice(self, text: str, *, below_answer: bool) -> None:
        """Print the bot's own words: the answer to a command, or a note below the model's answer."""
        if not self.is_terminal:
            return self.say(text)
        with _writing():
            mark = " " if below_answer else self.mark
            self.console.print(_entry(clean(text), mark, style="dim" if below_answer else ""))
        return None

    def reply(self) -> AbstractContextManager[Reply]:
        """Show a reply inside the block."""
        return self._streamed() if self.is_terminal else self._plain()

    @contextmanager
    def _streamed(self) -> Iterator[Reply]:
        reply = _StreamedReply(self.console, self.mark)
        with _writing():
            with reply.live:
                yield reply
            reply.finish()

    @contextmanager
    def _plain(self) -> Iterator[Reply]:
        reply = _PlainReply(self)
        yield reply
        reply.finish()


class _PlainReply:
    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._is_line_open = False

    def wait(self, text: str) -> None:
        pass

    def add(self, text: str) -> None:
        self._screen.say(text, end="")
        self._is_line_open = not text.endswith("\n")

    def finish(self) -> None:
        if self._is_line_open:
            self._screen.say("")


class _StreamedReply:
    """Prints each block of Markdown once it is complete; the block that still grows is redrawn below."""

    def __init__(self, console: Console, mark: str) -> None:
        self._console = console
        self._mark = mark
        self._spinner = Spinner("dots", "…")
        self._rest = ""  # the block that still grows
        self._has_printed = False
        self.live = Live(
            get_renderable=self._growing, console=console, refresh_per_second=_DRAWINGS_PER_SECOND, transient=True
        )

    def wait(self, text: str) -> None:
        self._spinner.update(text=text)

    def add(self, text: str) -> None:
        # Controls were removed in whole texts only: "\r\n" may come in two pieces.
        complete, self._rest = split_complete(clean(self._rest + text))
        if complete:
            self._print(complete)

    def finish(self) -> None:
        if self._rest.strip():
            self._print(self._rest)

    def _print(self, text: str) -> None:
        if self._has_printed:
            self._console.print()
        self._console.print(self._as_entry(text))
        self._has_printed = True

    def _as_entry(self, text: str) -> RenderableType:
        return _entry(text, " " if self._has_printed else self._mark)

    def _growing(self) -> RenderableType:
        if not self._rest.strip():
            return self._spinner
        return _LastLines(self._as_entry(self._rest))


class _LastLines:
    """The end of something that may be higher than the terminal, which could not be redrawn."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._content, options, pad=False)
        for line in lines[-max(console.height - 2, 1) :]:
            yield from line
            yield Segment.line()


class _ChatMarkdown(Markdown):
    """Markdown as a chat means it: a line break is one, and nothing is HTML, which rich would drop."""

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = _parse(text)


def _parse(text: str) -> list[Token]:
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).disable("reference")
    tokens = parser.parse(text)
    for inline in (child for token in tokens for child in token.children or ()):
        if inline.type == "softbreak":
            inline.type = "hardbreak"
    return tokens


def split_complete(text: str) -> tuple[str, str]:
    r"""Divide growing Markdown into the blocks that will not change any more, and the last one.

    >>> split_complete("One.\n\nTwo: `a")
    ('One.\n\n', 'Two: `a')
    >>> split_complete("```\na\n\nb")
    ('', '```\na\n\nb')
    """
    begins = [token.map[0] for token in _parse(text) if token.level == 0 and token.map and token.nesting >= 0]
    lines = text.splitlines(keepends=True)
    last = begins[-1] if begins else 0
    return "".join(lines[:last]), "".join(lines[last:])


def _entry(text: str, mark: str, style: str = "") -> Table:
    entry = Table.grid(padding=(0, 1, 0, 0), expand=False)
    entry.add_column(width=1, style="cyan")
    entry.add_column(style=style, overflow="fold")
    entry.add_row(mark, _ChatMarkdown(text))
    return entry


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of the pipe has closed it
    except OSError as error:
        raise PlatformUnavailable(f"standard output cannot be written to: {error.strerror}") from error
