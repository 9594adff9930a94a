"""Tables `[models.NAME]` with a base: one model in memory, each table with a P-Tuning prefix of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bot.cli.check import _checks
from bot.config.schema import Config, EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, Fallback, SamplingParams
from bot.engine import open_engine, preflight
from bot.engine.base import Engine, Memory, Progress
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.weights import PREFIX
from bot.engine.model_folder import DEMO
from bot.engine.router import ModelRouter, check_models
from bot.engine.shared import SharedSection
from bot.errors import CheckpointError, EngineError, EngineMisconfigured
from bot.util.clock import MonotonicClock
from tests.harness.fakes import FastClock, ScriptedEngine

HELLO = (ChatMessage("user", "hello"),)
GREEDY = SamplingParams(temperature=0, max_tokens=12)
SHARED = {
    "engine": EngineSection(model="big", ptuning="own"),
    "club": EngineSection(base="engine", ptuning="club"),
    "plain": EngineSection(base="engine"),
}


class Scripted:
    """Scripted engines, the sections that they were opened for, and those that were checked."""

    def __init__(self, *broken: str) -> None:
        self.broken = set(broken)
        self.engine = ScriptedEngine()
        self.opened: list[EngineSection] = []
        self.checked: list[EngineSection] = []

    def open(self, section: EngineSection, progress: Progress) -> Engine:
        self.opened.append(section)
        self.engine = ScriptedEngine()
        return self.engine

    def check(self, section: EngineSection, taken: Memory) -> Memory:
        self.checked.append(section)
        names = {"engine": section.ptuning, **(section.prefixes if isinstance(section, SharedSection) else {})}
        for name, folder in names.items():
            if folder in self.broken:
                raise CheckpointError(f"models.{name}.ptuning: no such folder")
        if section.model in self.broken:
            raise CheckpointError(f'engine.model = "{section.model}": no such folder')
        return {"cpu": 5}

    def router(self, sections: Mapping[str, EngineSection]) -> ModelRouter:
        return ModelRouter(sections, self.open, FastClock(), check=self.check)


def prefixes_of(section: EngineSection) -> dict[str, str]:
    assert isinstance(section, SharedSection)
    return {"engine": section.ptuning, **section.prefixes}


async def text(engine: Engine, model: str | None, params: SamplingParams = GREEDY) -> str:
    request = ChatRequest(HELLO, params, model=model)
    return "".join([event.text async for event in engine.generate(request) if isinstance(event, Delta)])


async def test_tables_with_a_base_share_its_engine_and_name_their_prefix() -> None:
    scripted = Scripted()
    async with scripted.router(SHARED) as router:
        for model in (None, "engine", "club", "plain"):
            await text(router, model)
        statuses = router.statuses()

    (opened,) = scripted.opened
    assert (opened.model, prefixes_of(opened)) == ("big", {"engine": "own", "club": "club", "plain": ""})
    assert [request.prefix for request in scripted.engine.requests] == ["", "", "club", "plain"]
    assert [(status.name, status.base) for status in statuses] == [
        ("engine", ""),
        ("club", "engine"),
        ("plain", "engine"),
    ]
    assert len(scripted.checked) == 1
    assert [each for each, _ in check_models(SHARED, scripted.check)] == ["engine"]


async def test_a_change_of_one_prefix_reloads_the_base_with_the_others() -> None:
    scripted = Scripted("gone")
    async with scripted.router(SHARED) as router:
        assert await router.change("club", EngineSection(base="engine", ptuning="other")) is None
        assert prefixes_of(scripted.opened[-1]) == {"engine": "own", "club": "other", "plain": ""}

        failure = await router.change("club", EngineSection(base="engine", ptuning="gone"))

        assert failure == "models.club.ptuning: no such folder"
        assert len(scripted.opened) == 2
        assert await text(router, "club") == "ok"


async def test_base_and_prefix_that_change_in_one_reload_are_loaded_together() -> None:
    scripted = Scripted()
    async with scripted.router(SHARED) as router:
        failures = await asyncio.gather(
            router.change("engine", EngineSection(model="other")),
            router.change("club", EngineSection(base="engine", ptuning="new")),
            router.change("plain", EngineSection(base="engine", fallback="club")),
        )

    assert set(failures) == {None}
    assert scripted.opened[-1].model == "other"
    assert prefixes_of(scripted.opened[-1]) == {"engine": "", "club": "new", "plain": ""}


async def test_a_base_that_is_not_loaded_is_replaced_by_the_fallback_of_each_table() -> None:
    scripted = Scripted("big")
    sections = {
        "engine": EngineSection(model="small"),
        "big": EngineSection(model="big", fallback="engine"),
        "club": EngineSection(base="big", ptuning="club", fallback="engine"),
    }
    async with scripted.router(sections) as router:
        events = [event async for event in router.generate(ChatRequest(HELLO, model="club"))]
        assert events[0] == Fallback("engine")
        assert router.statuses()[2].fault == 'models.big.model = "big": no such folder'
        scripted.broken.clear()
        assert await router.change("club", sections["club"]) is None
        assert await text(router, "club") == "ok"
        assert [request.prefix for request in scripted.engine.requests] == ["club"]

    without = {**sections, "club": EngineSection(base="big", ptuning="club")}
    with pytest.raises(EngineError, match="no such folder"):
        await Scripted("big").router(without).__aenter__()


def test_only_a_chatglm_shares_its_weights() -> None:
    section = SharedSection(backend="echo", prefixes={"club": "data/club"})
    with pytest.raises(EngineMisconfigured, match=r'models\.club\.base only works with a ChatGLM-6B .*"echo"'):
        preflight(section)


def prefix_folder(folder: Path, seed: int, length: int) -> str:
    config, random = read_config(DEMO), torch.Generator().manual_seed(seed)
    folder.mkdir(exist_ok=True)
    table = 4 * torch.randn(length, 2 * config.num_layers * config.hidden_size, generator=random)
    save_file({f"{PREFIX}embedding.weight": table}, folder / "model.safetensors")
    return str(folder)


async def test_a_running_model_serves_several_prefixes_and_takes_over_another(tmp_path: Path) -> None:
    one, two, three = (prefix_folder(tmp_path / str(seed), seed, 8 * seed) for seed in (1, 2, 3))
    plain = EngineSection(device="cpu", dtype="float32")
    sampled = SamplingParams(temperature=1, seed=4, max_tokens=12)

    async def alone(ptuning: str) -> list[str]:
        section = plain.model_copy(update={"ptuning": ptuning})
        async with open_engine(section) as engine:
            return [await text(engine, None, params) for params in (GREEDY, sampled)]

    wanted = {name: await alone(name) for name in ("", one, two, three)}
    sections = {
        "engine": plain,
        "club": EngineSection(base="engine", ptuning=one),
        "band": EngineSection(base="engine", ptuning=two),
    }
    assert len({*map(tuple, wanted.values())}) == 4
    async with ModelRouter(sections, open_engine, MonotonicClock(), check=preflight) as router:

        async def answers() -> list[str]:
            names = [name for name in sections for _ in range(2)]
            asked = zip(names, [GREEDY, sampled] * 3, strict=True)
            return list(await asyncio.gather(*(text(router, name, params) for name, params in asked)))

        assert await answers() == wanted[""] + wanted[one] + wanted[two]
        assert await router.change("band", EngineSection(base="engine", ptuning=three)) is None
        assert await answers() == wanted[""] + wanted[one] + wanted[three]
        refusal = await router.change("club", EngineSection(base="engine", ptuning=str(tmp_path)))
        assert refusal is not None
        assert 'set models.club.ptuning = ""' in refusal or str(tmp_path) in refusal
        assert await answers() == wanted[""] + wanted[one] + wanted[three]


def test_bot_check_names_the_tables_that_share_a_model(tmp_path: Path) -> None:
    folder = prefix_folder(tmp_path / "club", 1, 8)
    config = Config(models={"club": EngineSection(base="engine", ptuning=folder)})
    (what, error), *_ = _checks(config, f"sqlite+aiosqlite:///{tmp_path}/bot.db")
    assert (what, error) == (f"model engine, shared with club ({folder})", None)
    broken = Config(models={"club": EngineSection(base="engine", ptuning=str(tmp_path))})
    (_, error), *_ = _checks(broken, f"sqlite+aiosqlite:///{tmp_path}/bot.db")
    assert str(tmp_path) in str(error)
