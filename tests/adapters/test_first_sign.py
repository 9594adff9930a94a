"""What people see first while the engine is busy, in short."""

import pytest

from tests.adapters.first_sign import FORM_NAMES, measure


@pytest.mark.parametrize("form", FORM_NAMES)
async def test_each_question_gets_a_sign_before_the_engine_is_free(form: str) -> None:
    signs = await measure(form, questions=5)
    assert len(signs.seconds) == 5
    assert signs.violations == ()
