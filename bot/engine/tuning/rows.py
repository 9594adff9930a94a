"""Rows of token ids: prompt, answer, and how long they are."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from bot.engine.chatglm.prompt import render
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.tuning.data import Pair

# What a row has beside its texts: [gMASK] in the prompt; <sop> and <eop> with the answer.
_OF_PROMPT, _OF_ANSWER = 1, 2


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest numbers of tokens: of a prompt with its [gMASK], and of an answer with <sop> and <eop>."""

    source: int
    target: int

    @property
    def prompt(self) -> int:
        return self.source - _OF_PROMPT

    @property
    def answer(self) -> int:
        return self.target - _OF_ANSWER


@dataclass(frozen=True, slots=True)
class Row:
    """Ids of prompt, [gMASK], <sop>, answer and <eop>; `start` is the index of <sop>."""

    ids: tuple[int, ...]
    start: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class PromptIds:
    """Ids of a prompt's text; the rounds and tokens that the limit took away."""

    ids: tuple[int, ...]
    dropped_rounds: int = 0
    dropped_tokens: int = 0


def prompt_ids(pair: Pair, tokenizer: ChatGLMTokenizer, limit: int) -> PromptIds:
    """Encode the text that serving would send for this pair.

    Above `limit` tokens the oldest rounds are dropped.  The question stays; if it is too long
    by itself, its end is cut.
    """
    ids: list[int] = []
    for first in range(len(pair.history) + 1):
        ids = tokenizer.encode(pair.lead + render(pair.messages(first)))
        if len(ids) <= limit:
            return PromptIds(tuple(ids), first)
    return PromptIds(tuple(ids[:limit]), len(pair.history), len(ids) - limit)


def assemble(prompt: Sequence[int], answer: Sequence[int], tokenizer: ChatGLMTokenizer) -> Row:
    """Join ids of the texts into a row."""
    gmask, sop, eop = map(tokenizer.id_of, ("[gMASK]", "<sop>", "<eop>"))
    return Row((*prompt, gmask, sop, *answer, eop), len(prompt) + 1)


@dataclass(slots=True)
class Lengths:
    """Tokens of the texts before the limits, and what the limits took away."""

    prompts: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    shortened: int = 0  # dialogues that lost rounds
    cut_questions: int = 0
    cut_answers: int = 0

    def lines(self, limits: Limits) -> Iterable[str]:
        """Yield sentences for people."""
        for name, lengths, limit in (
            ("prompts", self.prompts, limits.prompt),
            ("answers", self.answers, limits.answer),
        ):
            ordered = sorted(lengths)
            yield (
                f"{name}: {ordered[0]} to {ordered[-1]} tokens, median {median(ordered):g}, "
                f"95 % up to {ordered[(len(ordered) * 95 - 1) // 100]}; the limit is {limit}"
            )
        for count, what, option in (
            (self.shortened, "dialogues lose their oldest rounds", "--max-source-length"),
            (self.cut_questions, "questions lose their end", "--max-source-length"),
            (self.cut_answers, "answers lose their end", "--max-target-length"),
        ):
            if count:
                yield f"{count} of {len(self.prompts)} {what}: raise {option} to keep them whole"


Notice = Callable[[int, int], None]


def encode(
    pairs: Sequence[Pair], tokenizer: ChatGLMTokenizer, limits: Limits, notice: Notice = lambda done, total: None
) -> tuple[list[Row], Lengths]:
    """Encode all pairs; `notice` is called with the pairs done and their number."""
    rows: list[Row] = []
    lengths = Lengths()
    for done, pair in enumerate(pairs, start=1):
        prompt, answer = prompt_ids(pair, tokenizer, limits.prompt), tokenizer.encode(pair.answer)
        lengths.prompts.append(len(prompt.ids) + prompt.dropped_tokens)
        lengths.answers.append(len(answer))
        lengths.shortened += prompt.dropped_rounds > 0
        lengths.cut_questions += prompt.dropped_tokens > 0
        lengths.cut_answers += len(answer) > limits.answer
        rows.append(assemble(prompt.ids, answer[: limits.answer], tokenizer))
        notice(done, len(pairs))
    return rows, lengths
