"""Tokenizer, chat template and incremental detokenizer of a transformers model."""

import copy
import threading
from collections.abc import Sequence
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from bot.domain import ChatMessage, Tokens
from bot.engine.thoughts import TAGS, Thoughts
from bot.errors import CheckpointError

# No character has more tokens than this: a longer incomplete sequence is invalid bytes.
LONGEST_CHARACTER = 8

REPLACEMENT = "\ufffd"  # of bytes that are not valid UTF-8 (yet)


class ChatTokenizer:
    """A `Tokenizer` over a transformers tokenizer.

    User text never becomes a control token.  If the template has no system role, the system
    message is prepended to the first question.

    Raises:
        CheckpointError: The chat template is missing or fails.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], folder: str) -> None:
        if not tokenizer.chat_template:
            raise CheckpointError(
                f"{folder} has no chat template (in tokenizer_config.json or chat_template.jinja), so it is not a chat "
                "model: choose one with chat or instruct in its name"
            )
        self.vocabulary = len(tokenizer)
        self.stop_ids = stop_ids
        # Prompts are counted in other threads, and the tokenizer is not thread-safe.
        self._lock = threading.Lock()
        self._tokenizer = tokenizer
        # All added tokens: the library's default is only those that the template contains.
        tokenizer.chat_control_tokens = [text for text in tokenizer.added_tokens_encoder if not text.isspace()]
        self._decoder = copy.deepcopy(tokenizer)
        self._unseen = frozenset(
            id for id, token in tokenizer.added_tokens_decoder.items() if token.special and token.content not in TAGS
        )
        self._knows_system = True
        self._probe(folder)

    def prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        return self._rendered(rounds(messages, knows_system=self._knows_system))

    def tokenize(self, text: str) -> Tokens:
        with self._lock:
            ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            return Tokens(tuple(ids), tuple(self._tokenizer.convert_ids_to_tokens(ids)))

    def thoughts(self) -> Thoughts:
        """Return what tells the reasoning of one answer from its text; some templates begin the reasoning."""
        return Thoughts(is_thinking=self._begins_thought)

    def detokenizer(self) -> "IncrementalDetokenizer":
        return IncrementalDetokenizer(self._decoder, self._unseen)

    def _rendered(self, messages: Sequence[dict[str, str]]) -> list[int]:
        with self._lock:
            ids = self._tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                sanitize_control_tokens=True,
                return_dict=False,
                enable_thinking=False,  # reasoning mode off; other templates ignore it
            )
        return cast("list[int]", ids)

    def _probe(self, folder: str) -> None:
        system, question = ChatMessage("system", "s"), ChatMessage("user", "u")
        try:
            asked = self.prompt([question])
        except (TemplateError, TypeError, ValueError, NotImplementedError) as exc:
            raise CheckpointError(f"the chat template of {folder} fails ({exc}): choose another model") from exc
        self._begins_thought = str(self._tokenizer.decode(asked)).rstrip().endswith(TAGS[0])
        try:
            self._knows_system = self.prompt([system, question]) != self.prompt([question])
        except TemplateError:
            self._knows_system = False


def rounds(messages: Sequence[ChatMessage], *, knows_system: bool) -> list[dict[str, str]]:
    r"""Normalise a chat for any template: at most one system message, then alternating roles.

    Consecutive messages of one role are joined by newlines; a leading answer gets an empty
    question.

    >>> chat = [ChatMessage("system", "Be brief."), ChatMessage("user", "Hi."), ChatMessage("user", "You there?")]
    >>> rounds(chat, knows_system=True)
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi.\nYou there?'}]
    >>> rounds(chat, knows_system=False)
    [{'role': 'user', 'content': 'Be brief.\n\nHi.\nYou there?'}]
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


class IncrementalDetokenizer:
    """Incremental detokenizer that returns whole characters; `unseen` ids have no text.

    The last text's ids are decoded again with the next ones: a tokenizer may drop the space
    before the first id of a sequence.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, unseen: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._unseen = unseen
        self._context: list[int] = []  # ids of the last text returned
        self._pending: list[int] = []  # ids since
        self._returned = ""  # part of both ids' text that was returned
        self._at_start = True

    def push(self, token: int) -> str:
        """Add an id; return the text that no later id can change, often ''."""
        if token in self._unseen:
            return ""
        self._pending.append(token)
        text = self._text()
        whole = text if len(self._pending) >= LONGEST_CHARACTER else text.rstrip(REPLACEMENT)
        if len(whole) <= len(self._returned):
            return ""
        new, self._returned = whole[len(self._returned) :], whole
        if whole == text:
            self._context, self._pending = self._pending, []
            self._returned = self._text()
        return self._strip_start(new)

    def finish(self) -> str:
        """Return the text held back so far."""
        return self._strip_start(self._text()[len(self._returned) :])

    def _text(self) -> str:
        ids = [*self._context, *self._pending]
        return cast("str", self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _strip_start(self, text: str) -> str:
        # Many models begin with a newline, like their template.
        if self._at_start:
            text = text.lstrip()
            self._at_start = not text
        return text
