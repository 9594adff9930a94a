"""Prompt lookup: drafts, their verification, and the same text as without them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Finished, FinishReason, SamplingParams
from bot.engine import open_engine
from bot.engine.chatglm.causal import DRAFTED_TOKENS, ChatGLMForServing
from bot.engine.chatglm.loading import load
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.model_folder import DEMO
from bot.engine.serving.base import Batch, CausalLM
from bot.engine.serving.lookup import PromptLookup, share_drafts
from bot.engine.serving.runner import STEPS_BEFORE_GROWTH, Runner
from bot.engine.serving.sampler import Sampler, SamplerState
from bot.engine.serving.scheduler import Step
from bot.engine.serving.sequence import Sequence
from bot.errors import EngineFailed

TOKENIZER = ChatGLMTokenizer.load(DEMO)
KINDS = ["none", "int8", "int4"]
QUOTATION = "repeat after me: the quick brown fox jumps over the lazy dog"
QUESTIONS = [
    QUOTATION,
    "please repeat: one two three four five six seven one two three four five six seven",
    "How do I clear the conversation?",
    "你是谁？",
    "echo: a b c d e f g h i j k l m n o p",
    "Which settings does the engine have?",
    "please repeat: 你好，你好，今天天气很好",
    "who are you?",
]
GREEDY = SamplingParams(temperature=0, max_tokens=40)
SAMPLED = SamplingParams(temperature=0.95, top_p=0.9, top_k=20, seed=5, max_tokens=40)
PARAMS = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "whole vocabulary": replace(SAMPLED, top_k=0, top_p=1.0, temperature=1.2),
    "stop string": replace(GREEDY, stop=("zy d", "x")),
    "limit": replace(GREEDY, max_tokens=9),
}


# Drafts


def test_a_draft_follows_the_longest_earlier_match_and_of_equal_ones_the_newest() -> None:
    assert PromptLookup([1, 2, 3, 70, 9, 2, 3, 80, 1, 2, 3]).draft(1) == (70,)
    assert PromptLookup([2, 3, 70, 9, 2, 3, 80, 5, 2, 3]).draft(2) == (80, 5)
    assert PromptLookup([1, 2, 3]).draft(5) == ()
    assert PromptLookup([1]).draft(5) == ()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 20))
@settings(deadline=None)
def test_a_draft_occurs_after_an_earlier_occurrence_of_the_end(ids: list[int], known: int) -> None:
    lookup = PromptLookup(ids[: known + 1])
    for token in ids[known + 1 :]:
        lookup.append(token)
    draft = list(lookup.draft(4))
    assert len(lookup.chances(4)) == len(draft)
    if draft:
        pattern = ids[-2:] + draft
        assert any(ids[at : at + len(pattern)] == pattern for at in range(len(ids) - 2))
    else:
        assert ids[-2:] not in [ids[at : at + 2] for at in range(len(ids) - 2)]


def test_predictions_that_are_wrong_end_the_drafts_and_right_ones_bring_them_back() -> None:
    quotation = list(range(100, 150))
    lookup = PromptLookup([*quotation, *(token for i in range(40) for token in (1, 2, 1000 + i)), 1, 2])

    def drafted() -> int:
        return share_drafts({"row": lookup.chances(20)}, rows=1, room=15).get("row", 0)

    assert drafted() > 0
    for i in range(30):
        for token in (2000 + i, 1, 2):
            lookup.append(token)
    assert drafted() == 0
    for token in quotation[:20]:
        lookup.append(token)
    assert drafted() > 4


def test_drafts_are_shared_by_chance_within_the_room_and_less_in_a_large_batch() -> None:
    certain, likely = [0.95] * 15, [0.6, 0.2]
    assert share_drafts({"a": certain, "b": likely}, rows=2, room=4) == {"a": 4}
    assert share_drafts({"b": likely}, rows=1, room=14) == {"b": 1}
    assert share_drafts({"b": likely}, rows=8, room=8) == {}
    assert share_drafts({"a": certain}, rows=8, room=8) == {"a": 8}
    assert share_drafts({"a": certain}, rows=16, room=0) == {}


# The sampler


@given(st.integers(0, 10_000), st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=4))
@settings(deadline=None)
def test_verified_rows_are_those_that_are_sampled_one_token_at_a_time(seed: int, drafts: list[list[int]]) -> None:
    sampler, generator = Sampler(5), torch.Generator().manual_seed(seed)
    params = [replace(SAMPLED, seed=seed + row, temperature=float(row % 3)) for row in range(len(drafts))]
    logits = [torch.randn(len(draft) + 1, 6, generator=generator) * 3 for draft in drafts]
    rows, alone = ([SamplerState.of(each) for each in params] for _ in range(2))
    found = sampler.verify(torch.cat(logits), rows, drafts)
    for row, draft, ids, numbers in zip(alone, drafts, found, logits, strict=True):
        wanted: list[int | None] = []
        for place in range(len(draft) + 1):
            wanted += sampler.sample(numbers[place : place + 1], [row])
            if place < len(draft) and wanted[-1] != draft[place]:
                break
        assert ids == wanted
    # The next numbers are the same too.
    following = torch.randn(1, 6, generator=generator).repeat(len(drafts), 1)
    assert sampler.sample(following, rows) == sampler.sample(following, alone)
    assert [row.draw() for row in rows] == [row.draw() for row in alone]


# The model


@cache
def demo(kind: Any) -> ChatGLMForServing:
    return load(DEMO, quantization=kind, device="cpu", slots=8)


def ids_of(question: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.prompt([ChatMessage("user", question)]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_drafts_gives_the_logits_of_steps_without(kind: str) -> None:
    model = demo(kind)
    slots, prompts = (5, 0, 1, 3), [ids_of(question) for question in QUESTIONS[:4]]
    tokens = [(7, 8, 9, 10, 11, 12), (20,), (30, 31, 32), (40, 41)]

    def prefill() -> None:
        model.forward(Batch(slots, tuple(prompts), (0,) * 4))

    prefill()
    wanted: list[list[Tensor]] = [[] for _ in slots]
    for place in range(6):
        rows = [row for row in range(4) if place < len(tokens[row])]
        batch = Batch(
            tuple(slots[row] for row in rows),
            tuple((tokens[row][place],) for row in rows),
            tuple(len(prompts[row]) + place for row in rows),
        )
        for row, logits in zip(rows, model.forward(batch), strict=True):
            wanted[row].append(logits)
    prefill()
    # Drafts that were wrong leave no trace.
    wrong = tuple((each[0], *(50 + token for token in each[1:]), 1) for each in tokens)
    starts = tuple(map(len, prompts))
    model.forward(Batch(slots, wrong, starts))
    found = model.forward(Batch(slots, tuple(tokens), starts))
    alone = torch.stack([logits for row in wanted for logits in row])
    if model._native is not None:
        assert torch.equal(found, alone)
    else:  # torch's kernels may add in another order
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_nan_of_a_wrong_draft_does_not_reach_the_next_step() -> None:
    model, prompt = demo("none"), ids_of(QUESTIONS[0])
    step = Batch((0,), ((7,),), (len(prompt),))
    model.forward(Batch((0,), (prompt,), (0,)))
    wanted = model.forward(step)
    model.forward(Batch((0,), ((7, 8, 9),), (len(prompt),)))
    cache = model._caches[0]
    cache.keys[:, 0, :, len(prompt) + 1 :] = cache.values[:, 0, :, len(prompt) + 1 :] = torch.nan
    cache.keys[:, 0, :, len(prompt) + 3 :] = cache.values[:, 0, :, len(prompt) + 3 :] = 0
    assert torch.equal(model.forward(step), wanted)


def test_drafts_are_off_where_a_step_cannot_verify_them() -> None:
    assert demo("none").step_tokens == DRAFTED_TOKENS
    assert load(DEMO, device="cpu,cpu", slots=8).step_tokens == 0
    captured = ChatGLMForServing(demo("none").network, slots=8, capture=lambda step: step)
    assert captured.step_tokens == 0


# Whole answers


class Watched:
    """A model whose steps can be counted, and fail; `change` may replace the logits."""

    def __init__(self, model: ChatGLMForServing) -> None:
        self._model = model
        self.context_length, self.slots, self.step_tokens = model.context_length, model.slots, model.step_tokens
        self.change: Callable[[Batch, Tensor], Tensor] = lambda batch, logits: logits
        self.steps: list[Batch] = []

    def forward(self, batch: Batch) -> Tensor:
        self.steps.append(batch)
        return self.change(batch, self._model.forward(batch))

    @property
    def drafted(self) -> list[int]:
        """Drafted tokens of each decode."""
        return [sum(len(tokens) - 1 for tokens in batch.tokens) for batch in self.steps if not batch.is_prefill]


Answer = tuple[str, int, FinishReason | str | None]


def answers(model: CausalLM, questions: list[str], params: SamplingParams, step_tokens: int) -> list[Answer]:
    """Return text, tokens and end of each answer, all in one batch; each has its own seed."""
    jobs: dict[Sequence, int] = {}
    for slot, question in enumerate(questions):
        seed = None if params.seed is None else params.seed + slot
        request = ChatRequest((ChatMessage("user", question),), replace(params, seed=seed))
        jobs[Sequence.of(request, ids_of(question), TOKENIZER, model.context_length)] = slot
    runner, texts, ends = Runner(model, TOKENIZER.vocabulary, step_tokens), dict.fromkeys(jobs, ""), {}
    is_prefill, running = True, dict(jobs)
    while running:
        for sequence, result in runner.run(Step(dict(running), is_prefill)).items():
            if isinstance(result, EngineFailed):
                ends[sequence] = str(result)
                del running[sequence]
                continue
            texts[sequence] += result
            if sequence.reason is not None:
                ends[sequence] = sequence.reason
                del running[sequence]
        is_prefill = False
    return [(texts[each], each.tokens, ends[each]) for each in jobs]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", PARAMS)
def test_answers_are_those_without_drafts_alone_and_in_a_batch(kind: str, how: str) -> None:
    model = Watched(demo(kind))
    alone = [answers(model, [question], PARAMS[how], 0)[0] for question in QUESTIONS[:2]]
    together = answers(model, QUESTIONS, PARAMS[how], 0)
    assert not any(model.drafted)
    assert [answers(model, [question], PARAMS[how], model.step_tokens)[0] for question in QUESTIONS[:2]] == alone
    assert any(model.drafted)
    assert answers(model, QUESTIONS, PARAMS[how], model.step_tokens) == together
    assert all(sum(map(len, batch.tokens)) <= model.step_tokens for batch in model.steps if not batch.is_prefill)


def test_a_quotation_takes_a_fraction_of_the_steps() -> None:
    model = Watched(demo("none"))
    [(text, tokens, _)] = answers(model, [QUOTATION], GREEDY, model.step_tokens)
    assert QUOTATION.removeprefix("repeat after me: ").startswith(text)
    assert 2 * len(model.steps) <= tokens


@pytest.mark.parametrize("error", [MemoryError(), ValueError("a kernel")])
def test_a_failed_step_is_repeated_without_drafts(error: Exception) -> None:
    model = Watched(demo("none"))
    wanted = answers(model, QUESTIONS, SAMPLED, 0)
    model.steps.clear()

    def fail(batch: Batch, logits: Tensor) -> Tensor:
        if any(len(tokens) > 1 for tokens in batch.tokens) and not batch.is_prefill:
            raise error
        return logits

    model.change = fail
    assert answers(model, QUESTIONS, SAMPLED, model.step_tokens) == wanted
    assert sum(map(bool, model.drafted)) == 1  # and for a while nothing is drafted
    assert len(model.steps) < STEPS_BEFORE_GROWTH


def test_text_before_logits_that_are_not_finite_is_delivered() -> None:
    model, last = Watched(demo("none")), len(ids_of(QUOTATION)) + 12

    def spoil(batch: Batch, logits: Tensor) -> Tensor:
        rows = [
            start + place
            for tokens, start in zip(batch.tokens, batch.starts, strict=True)
            for place in range(len(tokens))
        ]
        if not batch.is_prefill:
            logits[[row for row, at in enumerate(rows) if at >= last]] = torch.nan
        return logits

    model.change = spoil
    wanted = answers(model, [QUOTATION], GREEDY, 0)
    assert wanted[0][0]
    assert "NaN" in str(wanted[0][2])
    assert answers(model, [QUOTATION], GREEDY, model.step_tokens) == wanted
    assert any(model.drafted)


def test_a_large_batch_has_drafts_only_while_few_rows_are_left() -> None:
    # Beyond 64 rows other kernels compute the step.
    model = Watched(load(DEMO, quantization="int8", device="cpu", slots=70))
    answers(model, [QUOTATION] * 20 + QUESTIONS[2:5], GREEDY, model.step_tokens)
    sizes = [(len(batch), sum(map(len, batch.tokens))) for batch in model.steps if not batch.is_prefill]
    assert all(tokens == rows or tokens <= DRAFTED_TOKENS for rows, tokens in sizes)
    assert any(model.drafted)


async def test_the_engine_counts_tokens_and_not_steps() -> None:
    async with open_engine(EngineSection(model="demo", device="cpu")) as engine:
        request = ChatRequest((ChatMessage("user", QUOTATION),), GREEDY)
        async with aclosing(engine.generate(request)) as events:
            *_, last = [event async for event in events]
        assert isinstance(last, Finished)
        assert engine.load.tokens == last.usage.completion_tokens
        assert engine.load.steps * 2 <= engine.load.tokens
