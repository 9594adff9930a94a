"""Our training meets numbers of the published code: tests/data/tuning/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.report import Golden
from tests.tuning.golden import check_metrics, check_training, find_model

SET = Path(__file__).parents[1] / "data" / "tuning"


def test_ids_losses_gradients_and_parameters_are_those_of_the_published_training() -> None:
    lines: list[str] = []
    golden = Golden(SET, lines.append)

    check_training(golden, find_model(SET))

    assert [line for line in lines if line.startswith("FAIL")] == []
    assert golden.passed >= 40


def test_scores_are_those_of_the_published_evaluation() -> None:
    for package in ("nltk", "rouge_chinese", "jieba"):
        pytest.importorskip(package)
    lines: list[str] = []
    golden = Golden(SET, lines.append)

    check_metrics(golden)

    assert [line for line in lines if line.startswith("FAIL")] == []
    assert golden.passed == 2
