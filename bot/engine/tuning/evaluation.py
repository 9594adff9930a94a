"""Predictions of a model with and without a prefix, and their scores."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bot.domain import SamplingParams
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.serving.base import CausalLM
from bot.engine.tuning.data import Pair
from bot.engine.tuning.errors import TuningError
from bot.engine.tuning.generation import generate
from bot.engine.tuning.metrics import Prediction, Scorer
from bot.engine.tuning.rows import Limits, Notice, prompt_ids

PREDICTIONS_FILE = "generated_predictions.txt"
RESULTS_FILE = "predict_results.json"

GREEDY = SamplingParams(temperature=0)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predictions in the order of the data, and the means of their scores in percent."""

    predictions: tuple[Prediction, ...]
    scores: dict[str, float]

    @property
    def empty(self) -> int:
        """Number of empty predictions; each scores 0."""
        return sum(not each.predict for each in self.predictions)

    @property
    def exact(self) -> int:
        """Number of predictions that are the expected text, word for word."""
        return sum(each.predict == each.label for each in self.predictions)


def evaluation_prompt(pair: Pair, tokenizer: ChatGLMTokenizer, limits: Limits) -> list[int]:
    """Return the ids that a prediction starts from.

    The published evaluation cuts one token more than its training: here too, so that scores compare.
    """
    gmask, sop = tokenizer.id_of("[gMASK]"), tokenizer.id_of("<sop>")
    return [*prompt_ids(pair, tokenizer, limits.prompt - 1).ids, gmask, sop]


def predict(
    model: CausalLM,
    tokenizer: ChatGLMTokenizer,
    pairs: Sequence[Pair],
    limits: Limits,
    *,
    sampling: SamplingParams = GREEDY,
    seed: int = 42,
    notice: Notice = lambda done, total: None,
) -> tuple[Prediction, ...]:
    """Answer every pair's question."""
    answers = generate(
        model,
        [evaluation_prompt(pair, tokenizer, limits) for pair in pairs],
        vocabulary=tokenizer.vocabulary,
        stop_ids=tokenizer.stop_ids,
        max_tokens=limits.target,
        sampling=sampling,
        seed=seed,
        notice=notice,
    )
    # The expected text goes through the tokenizer too, which normalises some characters.
    labels = [tokenizer.encode(pair.answer)[: limits.answer] for pair in pairs]
    return tuple(
        Prediction(tokenizer.decode(label).strip(), tokenizer.decode(answer).strip())
        for label, answer in zip(labels, answers, strict=True)
    )


def evaluate(predictions: Sequence[Prediction], scorer: Scorer) -> Evaluation:
    return Evaluation(tuple(predictions), scorer.means(predictions))


def write(evaluation: Evaluation, folder: Path) -> None:
    """Write the files of the published evaluation.

    Raises:
        TuningError: They cannot be written.
    """
    lines = [
        json.dumps({"labels": each.label, "predict": each.predict}, ensure_ascii=False)
        for each in evaluation.predictions
    ]
    results = {f"predict_{name}": score for name, score in evaluation.scores.items()}
    results |= {"predict_samples": len(lines), "predict_empty": evaluation.empty}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in ((PREDICTIONS_FILE, "\n".join(lines)), (RESULTS_FILE, json.dumps(results, indent=2))):
            part = folder / f".{name}.part"
            part.write_text(content + "\n", encoding="utf-8")
            part.replace(folder / name)
    except OSError as exc:
        raise TuningError(f"{folder} cannot be written ({exc.strerror}): name another folder with --output") from exc
