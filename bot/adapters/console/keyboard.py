"""Keyboard input: questions of one or more lines, also while an answer streams."""

import os
import select
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys

from bot.chat.commands import COMMANDS
from bot.chat.i18n import Translate

# Seconds in which the next piece of a paste arrives, from a terminal that does not mark pastes.
_PASTE_SECONDS = 0.02
_ENTER = {Keys.ControlM, Keys.ControlJ}


class Keyboard:
    """Line editing with history and completion at the prompt; type-ahead while an answer streams."""

    def __init__(self, history: Path | None, translate: Translate, *, ascii_only: bool = False) -> None:
        self._history = history
        self._translate = translate
        self._prompt = FormattedText([("ansigreen bold", "> " if ascii_only else "❯ ")])
        self._session = self._open()
        self._questions: deque[str] = deque()  # typed during an answer
        self._unfinished = ""
        self._is_left = False  # Ctrl-D was typed during an answer

    async def question(self) -> str:
        """Return the next question, without the newlines around it.

        Raises:
            EOFError: Ctrl-D, or the terminal is closed.
            KeyboardInterrupt: Ctrl-C at an empty prompt.
        """
        while True:
            if self._questions:
                question = self._questions.popleft()
                self._session.app.output.write(f"{self._prompt[0][1]}{question}\n")
                self._session.app.output.flush()
                return question
            if self._is_left:
                raise EOFError
            unfinished, self._unfinished = self._unfinished, ""
            try:
                question = await self._session.prompt_async(self._prompt, default=unfinished)
            except KeyboardInterrupt:
                if not self._session.default_buffer.text:
                    raise
                continue
            if question.strip():
                return question.strip("\n")

    @contextmanager
    def during_answer(self, stop: Callable[[], object], interrupt: Callable[[], object]) -> Iterator[None]:
        """Keep what is typed for the next prompts; the line "stop" calls `stop`, Ctrl-C `interrupt`."""
        source = self._session.app.input

        def typed() -> None:
            keys = source.read_keys()
            for number, key in enumerate(keys):
                if key.key == Keys.ControlC:
                    interrupt()
                elif key.key == Keys.ControlD and not self._unfinished:
                    self._is_left = True
                elif key.key not in _ENTER:
                    self._unfinished = _edited(self._unfinished, key)
                elif _begins_with_text(keys[number + 1 :]):  # a paste
                    self._unfinished += "\n"
                else:
                    line, self._unfinished = self._unfinished, ""
                    if line.strip().lower().removeprefix("/") == "stop":
                        stop()
                    elif line.strip():
                        self._questions.append(line)

        # Raw: the terminal must not print what is typed into the answer.
        with source.raw_mode(), source.attach(typed):
            yield

    def forget(self) -> None:
        """Delete the history of what was typed."""
        if self._history is not None:
            with suppress(OSError):
                self._history.unlink(missing_ok=True)
        self._session = self._open()

    def _open(self) -> PromptSession[str]:
        return PromptSession(
            history=_history(self._history),
            multiline=True,
            key_bindings=_key_bindings(),
            completer=CommandCompleter(self._translate),
            prompt_continuation="  ",
        )


class CommandCompleter(Completer):
    """Completes /commands at the beginning of a question."""

    def __init__(self, translate: Translate) -> None:
        self._translate = translate

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        begun = document.text_before_cursor
        if begun.startswith("/"):
            for command in COMMANDS.values():
                words = f"/{command.name} {command.argument}".rstrip()
                if words.startswith(begun.lower()):
                    yield Completion(words, -len(begun), display_meta=self._translate(command.summary))


class _PrivateHistory(FileHistory):
    """A history that only its owner can read, and that may be lost when the disk is full."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def _history(path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError:  # a read-only folder: this time without
        return InMemoryHistory()
    return _PrivateHistory(path)


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()
    at_prompt = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=at_prompt)
    def _(event: KeyPressEvent) -> None:
        if _is_pasting(event):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=at_prompt)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _is_pasting(event: KeyPressEvent) -> bool:
    """Return whether more text arrived together with this Enter, faster than typing."""
    ahead = list(event.app.key_processor.input_queue)
    if ahead:
        return _begins_with_text(ahead)
    if sys.platform == "win32":
        return False
    ready, _, _ = select.select([event.app.input.fileno()], [], [], _PASTE_SECONDS)
    return bool(ready)


def _begins_with_text(keys: Sequence[KeyPress]) -> bool:
    return bool(keys) and (_is_text(keys[0]) or keys[0].key in _ENTER)


def _is_text(key: KeyPress) -> bool:
    return not isinstance(key.key, Keys) and key.data.isprintable()


def _edited(line: str, key: KeyPress) -> str:
    """Apply a key to a line that is not shown: text, a paste, Backspace, Ctrl-U; others do nothing."""
    match key.key:
        case Keys.BracketedPaste:
            return line + key.data.replace("\r\n", "\n").replace("\r", "\n")
        case Keys.ControlH:
            return line[:-1]
        case Keys.ControlU:
            return ""
        case _:
            return line + key.data if _is_text(key) else line
