"""A running engine takes over a trained prefix, and keeps the old one if the new is another model's."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

from safetensors.torch import load_file, save_file

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, SamplingParams
from bot.engine import open_engine
from bot.engine.base import Engine
from bot.engine.hot_swap import HotSwapEngine
from bot.util.clock import MonotonicClock
from tests.tuning.small import MODEL, training

PLAIN = EngineSection(model=str(MODEL), device="cpu", max_batch_size=2)
QUESTION = ChatRequest((ChatMessage("user", "hello world"),), SamplingParams(temperature=0, max_tokens=8))


async def answer(engine: Engine) -> str:
    async with aclosing(engine.generate(QUESTION)) as events:
        return "".join([event.text async for event in events if isinstance(event, Delta)])


async def test_a_running_engine_takes_over_a_prefix(tmp_path: Path) -> None:
    training(tmp_path, max_steps=2).run()
    tuned = PLAIN.model_copy(update={"ptuning": str(tmp_path)})
    other = tmp_path / "other"
    other.mkdir()
    (table,) = load_file(tmp_path / "model.safetensors").values()
    save_file({"transformer.prefix_encoder.embedding.weight": table[:, :-64].contiguous()}, other / "model.safetensors")

    async with HotSwapEngine(PLAIN, open_engine, MonotonicClock()) as engine:
        before = await answer(engine)
        assert await engine.change(tuned) is None
        after = await answer(engine)
        refusal = await engine.change(PLAIN.model_copy(update={"ptuning": str(other)}))
        assert refusal is not None
        assert "was trained for another model" in refusal
        assert before != after == await answer(engine)
        assert await engine.change(PLAIN) is None
        assert await answer(engine) == before
