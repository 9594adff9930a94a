"""The serving loop without failures."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise

import pytest

from bot.domain import Delta, EngineEvent, Finished, FinishReason, Queued, Thought, Usage
from bot.engine.serving.base import Batch
from bot.engine.serving.engine import ServingEngine
from bot.engine.thoughts import Thoughts
from bot.errors import EngineBusy, PromptTooLong
from tests.harness.scripted_model import FOREVER, Gate, ScriptedModel, Time, ask, events, loaded, serving, text_of


async def test_an_answer_streams_and_ends_with_its_usage() -> None:
    async with serving(ScriptedModel()) as engine:
        seen = await events(engine, ask("hello"))
        assert engine.count_tokens(ask("hello").messages) == 6
        assert engine.info.backend == "scripted"
    assert text_of(seen) == "hello"
    assert seen[-1] == Finished(FinishReason.STOP, Usage(prompt_tokens=6, completion_tokens=6))
    assert all(isinstance(event, Delta) and event.text for event in seen[:-1])


async def test_at_max_tokens_the_held_back_text_is_returned() -> None:
    async with serving(ScriptedModel()) as engine:
        seen = await events(engine, ask("hello", max_tokens=3))
    assert text_of(seen) == "hel"
    assert seen[-1] == Finished(FinishReason.LENGTH, Usage(6, 3))


async def test_an_answer_ends_when_the_context_is_full() -> None:
    async with serving(ScriptedModel(context_length=20)) as engine:
        seen = await events(engine, ask(FOREVER, max_tokens=500))
        longest = await events(engine, ask("x" * 18))
    assert text_of(seen) == "abcdefghijk"
    assert seen[-1] == Finished(FinishReason.LENGTH, Usage(9, 11))
    assert longest == [Delta("x"), Finished(FinishReason.LENGTH, Usage(19, 1))]


async def test_an_answer_ends_before_a_stop_string() -> None:
    async with serving(ScriptedModel()) as engine:
        seen = await events(engine, ask(FOREVER, stop=("fgh",)))
        held_to_the_end = await events(engine, ask(FOREVER, stop=("fgh",), max_tokens=7))
        whole = await events(engine, ask("abcfg", stop=("fgh",)))
    assert text_of(seen) == "abcde"
    assert seen[-1] == Finished(FinishReason.STOP, Usage(9, 8))
    assert text_of(held_to_the_end) == "abcdefg"
    assert text_of(whole) == "abcfg"


async def test_a_delta_holds_whole_characters() -> None:
    async with serving(ScriptedModel()) as engine:
        seen = await events(engine, ask("你好"))
        cut = await events(engine, ask("你好", max_tokens=4))
    assert text_of(seen) == "你好"
    assert not any("\ufffd" in event.text for event in seen if isinstance(event, Delta))
    assert text_of(cut) == "你\ufffd"


async def test_a_prompt_that_fills_the_context_is_rejected_before_queueing() -> None:
    async with serving(ScriptedModel(context_length=64)) as engine:
        with pytest.raises(PromptTooLong) as caught:
            await events(engine, ask("x" * 63))
        assert (caught.value.tokens, caught.value.limit) == (64, 64)
        assert engine.load.running == engine.load.waiting == 0


async def test_requests_share_the_steps() -> None:
    model, gate = ScriptedModel(slots=4), Gate()
    model.before = gate
    async with serving(model) as engine:
        answers = [asyncio.create_task(events(engine, ask(f"number {i}"))) for i in range(4)]
        await gate.arrival()
        gate.open()
        texts = [text_of(answer) for answer in await asyncio.gather(*answers)]
    assert texts == [f"number {i}" for i in range(4)]
    assert max(len(batch) for batch in model.steps if not batch.is_prefill) == 4
    assert sum(len(batch) for batch in model.steps) > 2 * len(model.steps)


async def test_with_one_slot_requests_run_strictly_one_at_a_time() -> None:
    model = ScriptedModel(slots=1)
    async with serving(model) as engine:
        answers = await asyncio.gather(*(events(engine, ask(f"number {i}")) for i in range(4)))
    assert [text_of(answer) for answer in answers] == [f"number {i}" for i in range(4)]
    assert all(len(batch) == 1 for batch in model.steps)
    assert sum(batch.is_prefill for batch in model.steps) == 4


async def test_running_answers_continue_between_two_prefills() -> None:
    model, gate = ScriptedModel(slots=8, context_length=600), Gate()
    model.before = gate
    async with serving(model) as engine, aclosing(engine.generate(ask(FOREVER))) as first:
        running = asyncio.create_task(anext(first))
        await gate.arrival()
        long = [asyncio.create_task(events(engine, ask("x" * 400, max_tokens=2))) for _ in range(3)]
        gate.open()
        await asyncio.gather(running, *long)
    kinds = [batch.is_prefill for batch in model.steps]
    assert kinds.count(True) == 4
    assert not any(earlier and later for earlier, later in pairwise(kinds))


async def test_a_waiting_request_gets_its_position_at_once_and_on_every_change() -> None:
    model, gate, time = ScriptedModel(slots=1), Gate(), Time()
    model.before = gate
    async with serving(model, now=time) as engine:
        first = asyncio.create_task(events(engine, ask("ab")))
        await gate.arrival()
        async with aclosing(engine.generate(ask("cd"))) as second, aclosing(engine.generate(ask("ef"))) as third:
            assert await anext(second) == Queued(1, None)
            assert await anext(third) == Queued(2, None)
            time.seconds += 6
            for _ in range(3):  # "a", "b", the stop id; then the second prefill
                await gate.step()
            await first
            assert await anext(third) == Queued(1, 6.0)
            gate.open()
            assert [event async for event in second][-1] == Finished(FinishReason.STOP, Usage(3, 3))
            assert [event async for event in third][-1] == Finished(FinishReason.STOP, Usage(3, 3))
    assert not any(isinstance(event, Queued) for event in first.result())


async def test_users_alternate_in_the_queue() -> None:
    model, gate = ScriptedModel(slots=1), Gate()
    model.before = gate
    async with serving(model) as engine:
        names = [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c")]
        answers = [asyncio.create_task(events(engine, ask(name, user=user))) for name, user in names]
        await gate.arrival()
        gate.open()
        await asyncio.gather(*answers)
    prompts = [bytes(batch.tokens[0][:-1]).decode() for batch in model.steps if batch.is_prefill]
    assert prompts == ["a1", "a2", "b1", "c1", "a3"]


async def test_a_full_queue_rejects_with_its_numbers() -> None:
    model, gate = ScriptedModel(slots=1), Gate()
    model.before = gate
    async with serving(model, max_waiting=2) as engine:
        running = [asyncio.create_task(events(engine, ask("hello"))) for _ in range(3)]
        await gate.arrival()
        with pytest.raises(EngineBusy) as caught:
            await events(engine, ask("one more"))
        assert (caught.value.waiting, caught.value.limit) == (2, 2)
        assert (engine.load.running, engine.load.waiting) == (1, 2)
        gate.open()
        assert [text_of(await task) for task in running] == ["hello"] * 3
        assert text_of(await events(engine, ask("one more"))) == "one more"


async def test_a_closed_request_leaves_the_batch_before_the_next_step() -> None:
    model, gate = ScriptedModel(slots=2), Gate()
    model.before = gate
    async with serving(model) as engine:
        staying, leaving = engine.generate(ask(FOREVER)), engine.generate(ask(FOREVER))
        both = [asyncio.create_task(anext(staying)), asyncio.create_task(anext(leaving))]
        await gate.arrival()
        while not all(task.done() for task in both):
            await gate.step()
        assert len(model.steps[-1]) == 2
        await leaving.aclose()  # during a step
        await gate.step()
        assert len(model.steps[-1]) == 1
        assert engine.load.running == 1
        await staying.aclose()
        gate.open()


async def test_a_slot_reused_during_a_step_serves_the_next_request() -> None:
    model, gate = ScriptedModel(slots=1), Gate()
    model.before = gate
    async with serving(model) as engine:
        first = engine.generate(ask(FOREVER))
        started = asyncio.create_task(anext(first))
        await gate.arrival()
        second = asyncio.create_task(events(engine, ask("hello")))
        await gate.step()
        await started
        await first.aclose()
        gate.open()
        assert text_of(await second) == "hello"


async def test_closing_a_waiting_request_moves_the_others_up() -> None:
    model, gate = ScriptedModel(slots=1), Gate()
    model.before = gate
    async with serving(model) as engine:
        first = asyncio.create_task(events(engine, ask("hello")))
        await gate.arrival()
        second, third = engine.generate(ask("x")), engine.generate(ask("y"))
        assert await anext(second) == Queued(1)
        assert await anext(third) == Queued(2)
        await second.aclose()
        assert await anext(third) == Queued(1)
        gate.open()
        assert text_of([event async for event in third]) == "y"
        await first


async def test_a_slow_reader_gets_the_whole_answer_in_few_deltas() -> None:
    model = ScriptedModel(slots=2)
    async with serving(model) as engine:
        slow = engine.generate(ask("a long answer to a slow reader"))
        first = await anext(slow)
        while engine.load.running:  # the worker never waits for the reader
            await events(engine, ask("x"))
        rest = [event async for event in slow]
    assert len(rest) <= 3
    assert text_of([first, *rest]) == "a long answer to a slow reader"


async def test_throughput_and_progress_are_measured() -> None:
    time = Time()
    model = ScriptedModel()

    def pass_time(batch: Batch) -> None:
        time.seconds += 0.5

    model.before = pass_time
    async with serving(model, now=time) as engine:
        assert engine.load.tokens_per_second is None
        time.seconds += 1000
        await events(engine, ask("hello"))
        assert engine.load.tokens_per_second == pytest.approx(2)


async def test_since_progress_is_the_age_of_the_last_step_and_0_while_idle() -> None:
    time, gate, model = Time(), Gate(), ScriptedModel()
    model.before = gate
    async with serving(model, now=time) as engine:
        time.seconds += 1000
        assert engine.load.since_progress == 0
        task = asyncio.create_task(events(engine, ask("hello")))
        await gate.arrival()
        assert engine.load.since_progress == 0
        time.seconds += 7
        assert engine.load.since_progress == 7
        await gate.step()
        assert engine.load.since_progress == 0
        time.seconds += 3
        assert engine.load.since_progress == 3
        gate.open()
        await task
        time.seconds += 1000
        assert engine.load.since_progress == 0


async def test_a_stuck_step_is_reported_after_all_its_requests_were_cancelled() -> None:
    time, gate, model = Time(), Gate(), ScriptedModel()
    model.before = gate
    async with serving(model, now=time) as engine:
        asked = asyncio.create_task(events(engine, ask("hello")))
        await gate.arrival()
        time.seconds += 7
        asked.cancel()
        await asyncio.wait([asked])
        assert (engine.load.running, engine.load.since_progress) == (0, 7)
        another = asyncio.create_task(events(engine, ask("hello")))
        await asyncio.sleep(0)
        assert (engine.load.running, engine.load.since_progress) == (1, 7)
        gate.open()
        assert text_of(await another) == "hello"


@pytest.mark.parametrize("seed", range(5))
async def test_a_storm_of_cancellations_leaves_nothing_behind(seed: int) -> None:
    dice = random.Random(seed)
    model = ScriptedModel(slots=3)
    async with serving(model, max_waiting=100) as engine:

        async def client(number: int) -> None:
            text = dice.choice([f"client {number}", FOREVER])
            stream: AsyncGenerator[EngineEvent, None] = engine.generate(
                ask(text, user=dice.choice("ab"), channel=dice.choice("xy"))
            )
            patience = dice.randrange(12)
            seen = []
            async with aclosing(stream):
                async for event in stream:
                    seen.append(event)
                    if len(seen) > patience:
                        return
            assert isinstance(seen[-1], Finished)
            if text != FOREVER:
                assert text_of(seen) == text

        async def killed(number: int) -> None:
            task = asyncio.create_task(client(number))
            for _ in range(dice.randrange(5)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

        async with asyncio.TaskGroup() as group:
            for number in range(60):
                group.create_task(dice.choice([client, killed])(number))
        assert engine.load.running == engine.load.waiting == 0
        assert text_of(await events(engine, ask("still here"))) == "still here"


async def test_reasoning_before_the_answer_is_no_part_of_it() -> None:
    told = loaded(ScriptedModel())
    async with ServingEngine(lambda progress: replace(told, thoughts=Thoughts), max_waiting=8) as engine:
        seen = await events(engine, ask("<think>2+2</think>\nFour <think>"))
        assert "".join(event.text for event in seen if isinstance(event, Thought)) == "2+2"
        assert text_of(seen) == "Four <think>"
        # A tag that never comes is text; a thought that never ends is none.
        assert text_of(await events(engine, ask("<thin"))) == "<thin"
        assert text_of(await events(engine, ask("<think>2+2"))) == ""
    async with ServingEngine(
        lambda progress: replace(told, thoughts=lambda: Thoughts(is_thinking=True)), max_waiting=8
    ) as engine:
        seen = await events(engine, ask("2+2</think>Four"))
        assert "".join(event.text for event in seen if isinstance(event, Thought)) == "2+2"
        assert text_of(seen) == "Four"
