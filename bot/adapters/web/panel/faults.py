"""States in words: the kind of a fault in the reader's language, its reason as the log has it."""

from typing import Literal

from bot.adapters.web.access import Right
from bot.adapters.web.panel.html import Html, text
from bot.chat.i18n import Translate, gettext_noop

Part = Literal["platform", "model", "database"]

_GOOD: dict[Part, str] = {
    "platform": gettext_noop("connected"),
    "model": gettext_noop("ready"),
    "database": gettext_noop("ready"),
}
_BAD: dict[Part, str] = {
    "platform": gettext_noop("Not served"),
    "model": gettext_noop("Cannot answer"),
    "database": gettext_noop("Cannot be used"),
}
# Reasons that are always the same; they need no kind.
_FIXED = frozenset(
    {
        gettext_noop("changing the model"),
        gettext_noop("loading"),
        gettext_noop("not connected"),
        gettext_noop("opening"),
        gettext_noop("stopped"),
        gettext_noop("stopped by an internal error, see the log"),
    }
)


def state_html(fault: str | None, part: Part, right: Right, translate: Translate) -> Html:
    """Return a state in words, marked as good or bad; only operators read reasons, which name hosts and paths."""
    if fault is None:
        return Html(f'<span class="good">{text(translate(_GOOD[part]))}</span>')
    return Html(f'<span class="bad">{text(in_words(fault, part, right, translate))}</span>')


def reason_of(why: str, right: Right, translate: Translate) -> str:
    """Return a reason, which may name hosts and paths, for operators; a sentence for others.

    >>> reason_of("no such folder /x", Right.ADMIN, str), reason_of("no such folder /x", Right.OPERATOR, str)
    ('the operator can read the reason', 'no such folder /x')
    """
    return why if right >= Right.OPERATOR else translate("the operator can read the reason")


def in_words(fault: str, part: Part, right: Right, translate: Translate) -> str:
    """Return what is wrong.

    >>> in_words("loading", "model", Right.ADMIN, str)
    'loading'
    >>> in_words("no such folder /x", "model", Right.ADMIN, str)
    'Cannot answer'
    >>> in_words("no such folder /x", "model", Right.OPERATOR, str)
    'Cannot answer: no such folder /x'
    """
    if fault in _FIXED:
        return translate(fault)
    kind = translate(_BAD[part])
    if right < Right.OPERATOR:
        return kind
    return translate("{kind}: {reason}").format(kind=kind, reason=fault)
