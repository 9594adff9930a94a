"""Generated answers are shown to the last character, whatever they hold beside markup."""

import pytest

from bot.adapters.telegram.markup import TelegramFormat
from tests.delivery.markdown.answers import differences, generated


def test_generated_answers_are_shown_whole() -> None:
    assert differences(range(150)) == []


def test_the_markup_of_generated_answers_is_rendered() -> None:
    kinds = {
        getattr(entity, "kind", "")
        for seed in range(100)
        for entity in TelegramFormat().render(generated(seed).markdown).entities
    }
    assert kinds == {"blockquote", "bold", "code", "italic", "pre", "strikethrough", "text_link"}


@pytest.mark.parametrize(
    ("markdown", "shown"),
    [
        ("10\n+ 5\n- 3\n= 12", "10\n+ 5\n- 3\n= 12"),
        ("a\n=\nb", "a\n=\nb"),
        ("[1]: https://a.b\n[x](y) handlers[name](event)", "[1]: https://a.b\n[x](y) handlers[name](event)"),
        ("| a | b |\n|--|--|\n| 1 | 2 | 3 |", "| a | b |\n|--|--|\n| 1 | 2 | 3 |"),
        ("1. a\n5. b\n\n1986. A great year", "1. a\n5. b\n\n1986. A great year"),
        ("![](https://x.y/z.png) [](https://a.b)", "https://x.y/z.png https://a.b"),
        ("a \\\nb &nbsp; \\* \\_x\\_", "a \\\nb &nbsp; \\* \\_x\\_"),
        ("1. a\n2.\n3. c\n\n42.", "1. a\n2.\n3. c\n\n42."),
        ("- a\n-\n- c", "• a\n-\n• c"),
        (">>> 2**10\n>no quote", ">>> 2**10\n>no quote"),
        ("costs $5 and **really** $6", "costs $5 and really $6"),
    ],
)
def test_signs_that_belong_to_the_words_stay(markdown: str, shown: str) -> None:
    assert TelegramFormat().render(markdown).text.replace("\N{EN SPACE}", " ").replace(" \n", "\n") == shown.replace(
        " \n", "\n"
    )
