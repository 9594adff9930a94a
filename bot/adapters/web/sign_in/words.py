"""The page on which people sign in, in the language of its reader."""

from html import escape
from pathlib import Path

from bot.adapters.web.access import Person, Right
from bot.adapters.web.template import fill_page
from bot.chat.i18n import Language, Translate
from bot.chat.sign_in import LINK_SECONDS

_PAGE = Path(__file__).parents[1] / "static" / "signin.html"


def sign_in_html(language: Language, translate: Translate, next: str, *, has_oidc: bool, said: str = "") -> str:
    """Return the page; it leads to `next`, and shows what was `said` about a failure."""
    return fill_page(
        _PAGE,
        language,
        _words(translate),
        next=escape(next),
        said=escape(said),
        said_hidden="" if said else "hidden",
        oidc_hidden="" if has_oidc else "hidden",
    )


def person_html(person: Person, translate: Translate, panel: str = "") -> str:
    """Return who is signed in, with a button to sign out, and a link to the panel for those who may see it."""
    if person.is_local:
        return ""
    name = "" if person.who is None else person.who.name or person.who.key
    parts = [f"<bdi>{escape(name)}</bdi>"]
    if panel and person.right >= Right.ADMIN:
        to_panel = translate("Panel")
        parts.append(f'<a href="{panel}">{escape(to_panel)}</a>')
    if not person.is_proxied:  # a proxy that names the person has its own way out
        sign_out = translate("Sign out")
        parts.append(f'<button id="sign-out" type="button">{escape(sign_out)}</button>')
    return f'<div class="person">{"".join(parts)}</div>'


def session_words(translate: Translate) -> dict[str, str]:
    """Return the words of a page for the end of a session."""
    return {"ended": translate("Your session has ended. Nothing is lost."), "sign_in": translate("Sign in")}


def _words(translate: Translate) -> dict[str, str]:
    return {
        "title": translate("Sign in"),
        "enter": translate("Sign in"),
        "ready": translate("You have opened a sign-in link. It works once."),
        "how": translate(
            "Admins: send /signin to the bot. It answers with a link that only you can see, valid for {minutes} minutes."
        ).format(minutes=round(LINK_SECONDS / 60)),
        "provider": translate("Sign in with your organization's account"),
        "offline": translate("No connection to the bot; please try again."),
        "script": translate("This page needs JavaScript."),
    }
