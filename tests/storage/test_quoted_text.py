"""Detection of quotations of a deleted text."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.domain import Kind
from bot.storage.quoted_text import MIN_DISTINCTIVE, Quotations, Said, is_quote
from tests.storage import message, temporary_store

some_words = st.lists(st.text("ab中1é", min_size=1, max_size=6), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("quotation", "text"),
    [
        ("no", "no"),
        ("@bot no", "no"),
        ("no @bot", "no"),
        ("no", "I think no, thanks"),
        ("4711", "my PIN is 4711"),
        ("cret password", "the secret password"),
        ("Mei: the password is 1234", "the password is 1234"),
        ("芝麻", "密码是芝麻开门"),
        ("阿梅说密码是芝麻开门对吗", "密码是芝麻开门"),
    ],
)
def test_a_quotation_of_a_text_is_found(quotation: str, text: str) -> None:
    assert is_quote(quotation, {"something else", text})


@pytest.mark.parametrize(
    ("quotation", "text"),
    [
        ("I know nothing", "no"),
        ("no, never", "no"),
        ("no", "I know nothing"),
        ("cret", "the secret password"),
        ("misunderstandings", "understanding"),
        ("好的，我知道了", "好的"),
        ("", "anything"),
    ],
)
def test_a_text_with_the_same_letters_is_not_a_quotation(quotation: str, text: str) -> None:
    assert not is_quote(quotation, {"something else", text})


@given(before=some_words, said=some_words, after=some_words)
def test_whole_words_and_distinctive_texts_are_found(before: list[str], said: list[str], after: list[str]) -> None:
    part, whole = " ".join(said), " ".join([*before, *said, *after])
    assert is_quote(part, {whole})
    assert is_quote(whole, {part}) or len(part.encode()) < MIN_DISTINCTIVE


async def test_a_quotation_that_is_stored_while_quotations_are_compared_is_deleted_too(tmp_path: Path) -> None:
    place = "slack", "C1"
    secret, other = Said(place, "a secret text"), Said(place, "another one")
    async with temporary_store(tmp_path) as store:

        async def quote(number: int, text: str) -> None:
            await store.enqueue(replace(message(number), quoted=text), Kind.CHAT)

        async def prepare() -> None:
            await quotations.prepare([secret])

        await quote(3, secret.text)
        await quote(4, other.text)
        quotations = Quotations(store._transactions, store._vault)
        await store._shield("prepare", prepare())
        await quote(5, secret.text)

        async def redact() -> int:
            async with store._writing() as tx:
                await quotations.read_added(tx, {place})
                return await quotations.redact(tx, [], [secret, other])

        assert await store._shield("redact", redact()) == 3
        kept = await store.said_since("slack", message(3).sent_at)
    assert [exchange.message.quoted for exchange in kept] == [None, None, None]
