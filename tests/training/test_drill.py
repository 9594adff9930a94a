"""The copying drill can be solved by copying, and only by copying."""

from random import Random

import pytest

from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.model_folder import DEMO
from training.batches import IGNORED, TokenizedExample, batch_of
from training.drill import Drill
from training.examples import Examples

WORDS = 2000
LENGTH = 9


@pytest.fixture(scope="module")
def drill() -> Drill:
    rng = Random(1)
    return Drill(Examples(rng), ChatGLMTokenizer.load(DEMO), rng, WORDS)


def longest_common_run(row: TokenizedExample) -> int:
    best = 0
    for i in range(len(row.answer)):
        for j in range(len(row.prompt)):
            run = 0
            while row.answer[i + run : i + run + 1] == row.prompt[j + run : j + run + 1] != []:
                run += 1
            best = max(best, run)
    return best


def test_every_drilled_answer_repeats_random_pieces_of_its_prompt(drill: Drill) -> None:
    for row in [*drill.plain(20, LENGTH), *drill.rows(60, LENGTH)]:
        assert longest_common_run(row) >= LENGTH


def test_a_prompt_ends_with_gmask_and_sop_and_an_answer_with_eop(drill: Drill) -> None:
    config = read_config(DEMO)
    for row in [*drill.plain(5, LENGTH), *drill.rows(20, LENGTH)]:
        assert row.prompt[-2:] == [config.gmask_token_id, config.bos_token_id]
        assert row.answer[-1] == config.eos_token_id


def test_only_the_answer_is_a_target() -> None:
    config = read_config(DEMO)
    prompt = [20, 21, config.gmask_token_id, config.bos_token_id]
    short, long = (
        TokenizedExample(0, prompt, [30, config.eos_token_id]),
        TokenizedExample(0, prompt, [30, 31, 32, config.eos_token_id]),
    )
    batch = batch_of([short, long], config)
    targets = [[t for t in row if t != IGNORED] for row in batch.targets.tolist()]
    assert targets == [short.answer, long.answer]
    assert batch.ids[0].tolist() == [*prompt, 30, config.pad_token_id, config.pad_token_id]
    # The first answer token is the target of <sop>.
    assert batch.targets[0].tolist().index(30) == len(prompt) - 1
