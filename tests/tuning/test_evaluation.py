"""Predictions in batches, and scores that a crash or a seed would change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bot.domain import SamplingParams
from bot.engine.chatglm.loading import load
from bot.engine.tuning.errors import TuningError
from bot.engine.tuning.evaluation import GREEDY, evaluate, predict, write
from bot.engine.tuning.metrics import Prediction, Scorer
from tests.tuning.small import MODEL, PAIRS, RECIPE, base


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams()])
def test_a_prediction_does_not_depend_on_its_batch(sampling: SamplingParams) -> None:
    limits = replace(RECIPE.limits, target=6)
    found = [
        predict(load(MODEL, dtype="float32", slots=slots), base().tokenizer, PAIRS, limits, sampling=sampling)
        for slots in (1, 3)
    ]

    assert found[0] == found[1]
    assert all("<" not in each.predict and "<" not in each.label for each in found[0])


def test_an_empty_prediction_scores_0_and_is_counted(tmp_path: Path) -> None:
    for package in ("nltk", "rouge_chinese", "jieba"):
        pytest.importorskip(package)
    found = evaluate([Prediction("今天天气很好", "今天天气很好"), Prediction("x", "")], Scorer())

    assert (found.empty, found.exact) == (1, 1)
    assert set(found.scores.values()) == {50.0}
    write(found, tmp_path)
    assert '"predict_empty": 1' in (tmp_path / "predict_results.json").read_text()
    (tmp_path / "file").touch()
    with pytest.raises(TuningError, match="cannot be written"):
        write(found, tmp_path / "file")
