"""The estimate of a training's memory: what the page promises, and a measured peak."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bot.engine.tuning.batches import pad
from bot.engine.tuning.errors import OutOfMemory
from bot.engine.tuning.memory import check, training_need
from tests.tuning.memory import need, table
from tests.tuning.peak import peak_of
from tests.tuning.small import RECIPE, base, network, rows, trainer

PAGE = Path(__file__).parents[2] / "docs" / "TUNING.md"


def test_the_page_has_the_table() -> None:
    assert "\n".join(table()) in PAGE.read_text(encoding="utf-8")


def test_int4_of_chatglm_6b_trains_in_7_gb() -> None:
    assert need("int4", 1).total <= 7e9


def test_a_projection_is_33_times_the_prefix() -> None:
    assert need("int4", 1, projection=True).prefix > 25 * need("int4", 1).prefix


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_stays_below_its_estimate(*, recompute: bool) -> None:
    recipe = replace(RECIPE, accumulation=1, batch_size=7)
    each, batch = trainer(recipe, recompute=recompute), pad(rows(), network().config)
    estimate = training_need(
        base().config, "none", torch.float32, recipe, recompute=recompute, tokens=batch.ids.shape[1]
    )

    peak = peak_of(lambda: each.step([batch]))

    assert 0.2 * (estimate.layers + estimate.step) < peak < estimate.layers + estimate.step + estimate.prefix


def test_a_training_that_does_not_fit_is_refused_before_it_begins() -> None:
    with pytest.raises(OutOfMemory, match="choose --quantization int4"):
        check(need("none", 10**6), torch.device("cpu"))
