"""Answers of a model in a loop: the same words again and again."""

# Repetitions that are a loop.
REPEATS = 8
# Of a cycle without letters, such as rows of a table, zeros or a line of dashes.
_PLAIN_REPEATS = 64
# Characters of the longest loop that is noticed: a cycle of 1,000.
LONGEST_LOOP = 1_000 * REPEATS
# Characters at the end whose earlier occurrences tell how long a cycle can be, and most occurrences that are tried.
_PROBE = 12
_TRIES = 8
# Most paragraphs below an answer in a quotation of it: the bot's own sentences.
_PARAGRAPHS_BELOW = 4


def loop_at_end(text: str) -> int:
    """Return the length of the cycle of at least 2 characters that a text ends with, 8 times or more; 0 without one.

    >>> loop_at_end("Well. " + "so it is, " * 8), loop_at_end("so it is, " * 7), loop_at_end("0, " * 9)
    (10, 0, 0)
    """
    window = text[-LONGEST_LOOP:]
    probe, at = window[-_PROBE:], len(window) - _PROBE
    for _ in range(_TRIES):
        at = window.rfind(probe, 0, at + _PROBE - 1)
        if at < 0:
            return 0
        length = len(window) - _PROBE - at
        if length > len(window) // REPEATS:
            return 0
        cycle = window[-length:]
        repeats = REPEATS if any(map(str.isalpha, cycle)) else _PLAIN_REPEATS
        if len(set(cycle)) > 1 and window.endswith(cycle * repeats):
            return length
    return 0


def without_loop(text: str) -> str:
    """Return a text with one round of the loop that it ends with.

    >>> without_loop("Well. " + "so it is, " * 9)
    'Well. so it is, '
    """
    length = loop_at_end(text)
    if not length:
        return text
    end = len(text)
    while end >= 2 * length and text[end - 2 * length : end - length] == text[end - length : end]:
        end -= length
    return text[:end]


def without_quoted_loop(text: str) -> str:
    r"""Return the quotation of an answer with one round of its loop, and the bot's own sentences below it.

    >>> without_quoted_loop("Well. " + "so it is, " * 9 + "\n\n(The answer was ended here.)")
    'Well. so it is,\n\n(The answer was ended here.)'
    """
    answer, below = text, ""
    for _ in range(_PARAGRAPHS_BELOW + 1):
        if loop_at_end(answer):
            return without_loop(answer).rstrip() + below if below else without_loop(answer)
        answer, gap, last = answer.rpartition("\n\n")
        below = gap + last + below
    return text
