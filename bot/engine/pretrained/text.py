"""A library's tokenizer as the serving loop asks for it: a chat to ids by its own template, ids to text."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from bot.domain import ChatMessage
from bot.errors import CheckpointError

# No character takes more tokens than this to be spelled out: what looks unfinished after
# that many is wrong bytes, and stays so.
LONGEST_CHARACTER = 8

PARSE_ERRORS = "\ufffd"


class ChatTokenizer:
    """A `Tokenizer` over one of the library's.

    What people write never becomes a control token: where it looks like one, it is spelled
    out.  Templates that know no system role get it as the beginning of the first question.

    Raises:
        CheckpointError: It has no chat template, or one that fails.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], folder: str) -> None:
        if not tokenizer.chat_template:
            raise CheckpointError(
                f"{folder} has no chat template (in tokenizer_config.json or chat_template.jinja), so it is no chat "
                "model: choose one whose name says chat or instruct"
            )
        self.vocabulary = len(tokenizer)
        self.stop_ids = stop_ids
        # Counting a long history happens in other threads, and the tokenizer is not made for that.
        self._lock = threading.Lock()
        self._tokenizer = tokenizer
        # All that was added, not only what the template happens to contain, as the library would have it.
        tokenizer.chat_control_tokens = [text for text in tokenizer.added_tokens_encoder if not text.isspace()]
        self._decoder = copy.deepcopy(tokenizer)
        self._unseen = frozenset(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._knows_system = True
        self._probe(folder)

    def prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        return self._rendered(rounds(messages, knows_system=self._knows_system))

    def detokenizer(self) -> Spelling:
        return Spelling(self._decoder, self._unseen)

    def _rendered(self, messages: Sequence[dict[str, str]]) -> list[int]:
        with self._lock:
            ids = self._tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                sanitize_control_tokens=True,
                return_dict=False,
                # Models that think aloud first are asked not to; templates of others do not look at it.
                enable_thinking=False,
            )
        return cast("list[int]", ids)

    def _probe(self, folder: str) -> None:
        system, question = ChatMessage("system", "s"), ChatMessage("user", "u")
        try:
            self.prompt([question])
        except (TemplateError, TypeError, ValueError, NotImplementedError) as exc:
            raise CheckpointError(f"the chat template of {folder} fails ({exc}): choose another model") from exc
        try:
            self._knows_system = self.prompt([system, question]) != self.prompt([question])
        except TemplateError:
            self._knows_system = False


def rounds(messages: Sequence[ChatMessage], *, knows_system: bool) -> list[dict[str, str]]:
    """Bring a chat into the form that every template takes: one system message, then question and answer in turn.

    Messages of one role in a row are one message of several lines; an answer to nothing
    answers an empty question.

    >>> chat = [ChatMessage("system", "Be brief."), ChatMessage("user", "Hi."), ChatMessage("user", "You there?")]
    >>> rounds(chat, knows_system=True)
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi.\\nYou there?'}]
    >>> rounds(chat, knows_system=False)
    [{'role': 'user', 'content': 'Be brief.\\n\\nHi.\\nYou there?'}]
    """
    system = "\n".join(message.content for message in messages if message.role == "system" and message.content)
    chat: list[dict[str, str]] = []
    for message in messages:
        if message.role == "system":
            continue
        if chat and chat[-1]["role"] == message.role:
            chat[-1]["content"] += "\n" + message.content
            continue
        if not chat and message.role == "assistant":
            chat.append({"role": "user", "content": ""})
        chat.append({"role": message.role, "content": message.content})
    if not system:
        return chat
    if knows_system:
        return [{"role": "system", "content": system}, *chat]
    first = chat[0]["content"] if chat else ""
    return [{"role": "user", "content": f"{system}\n\n{first}".rstrip("\n")}, *chat[1:]]


class Spelling:
    """One answer's ids to text, whole characters only; `unseen` ids have no text.

    The ids of the last text are decoded again with those that follow, because a tokenizer
    may write the first of several in another way: without its space, for one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, unseen: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._unseen = unseen
        self._known: list[int] = []  # the ids of the last text
        self._open: list[int] = []  # those after them
        self._said = ""  # what was given out of the text of both
        self._at_start = True

    def push(self, token: int) -> str:
        """Take the next id; return the text that no later id can change, often ''."""
        if token in self._unseen:
            return ""
        self._open.append(token)
        text = self._text()
        whole = text if len(self._open) >= LONGEST_CHARACTER else text.rstrip(PARSE_ERRORS)
        if len(whole) <= len(self._said):
            return ""
        new, self._said = whole[len(self._said) :], whole
        if whole == text:
            self._known, self._open = self._open, []
            self._said = self._text()
        return self._begun(new)

    def finish(self) -> str:
        """Return what was held back."""
        return self._begun(self._text()[len(self._said) :])

    def _text(self) -> str:
        ids = [*self._known, *self._open]
        return cast("str", self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _begun(self, text: str) -> str:
        # Many models begin with a line end, as their template does.
        if self._at_start:
            text = text.lstrip()
            self._at_start = not text
        return text
