"""BLEU-4 and ROUGE of Chinese and English texts, as the published evaluation computes them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from bot.engine.tuning.errors import TuningError

NAMES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")


@dataclass(frozen=True, slots=True)
class Prediction:
    """A generated text, and the one that was expected."""

    label: str
    predict: str


class Scorer:
    """Scores predictions in percent, rounded to 4 digits.

    ROUGE is the F1 of sets of jieba's words (of the longest common subsequence in ROUGE-L), BLEU-4 is
    over characters with nltk's third smoothing.  An equal text of fewer than four characters is below 100.

    Raises:
        TuningError: nltk, rouge_chinese or jieba is not installed.
    """

    def __init__(self) -> None:
        self._jieba = _package("jieba")
        self._jieba.setLogLevel(logging.WARNING)
        self._rouge = _package("rouge_chinese").Rouge()
        self._bleu = _package("nltk.translate.bleu_score")
        self._smoothing = self._bleu.SmoothingFunction().method3

    def scores(self, predict: str, label: str) -> dict[str, float]:
        """Return the scores of a prediction; an empty one scores 0."""
        if not predict.strip():
            return dict.fromkeys(NAMES, 0.0)
        words = [" ".join(self._jieba.cut(text)) for text in (predict, label)]
        (rouge,) = self._rouge.get_scores(*words)
        bleu = self._bleu.sentence_bleu([list(label)], list(predict), smoothing_function=self._smoothing)
        found = {name: float(each["f"]) for name, each in rouge.items()} | {"bleu-4": float(bleu)}
        return {name: round(100 * found[name], 4) for name in NAMES}

    def means(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the mean of each score, rounded to 4 digits."""
        every = [self.scores(each.predict, each.label) for each in predictions]
        return {name: round(sum(scores[name] for scores in every) / len(every), 4) for name in NAMES}


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        raise TuningError(
            f'evaluating needs the package {exc.name}, which is not installed: python -m pip install "chatglm-bot[tune]"'
        ) from exc
