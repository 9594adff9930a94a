"""Markdown of questions and answers as HTML that is safe in the page."""

import re
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

_LINK = re.compile(r"(https?://|mailto:)", re.IGNORECASE)


def render_html(markdown: str) -> str:
    r"""Render Markdown: what looks like HTML is text, links lead to web pages and addresses only.

    An image would be a request to a third party, and becomes a link.

    >>> render_html("**a** <b>\n[x](javascript:alert)")
    '<p><strong>a</strong> &lt;b&gt;<br>\n[x](javascript:alert)</p>\n'
    >>> render_html("![cat](https://example.org/cat.png)")
    '<p>!<a href="https://example.org/cat.png" target="_blank" rel="noopener noreferrer nofollow">cat</a></p>\n'
    """
    html: str = _PARSER.render(markdown)
    return html


def _link_open(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    token = tokens[index]
    token.attrSet("target", "_blank")
    token.attrSet("rel", "noopener noreferrer nofollow")
    return renderer.renderToken(tokens, index, options, env)


def _heading(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    # The page's own headings are above those of an answer.
    token = tokens[index]
    token.tag = f"h{min(int(token.tag[1:]) + 2, 6)}"
    return renderer.renderToken(tokens, index, options, env)


def _fence(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    # With a tab stop: a long line is scrolled by keyboard.
    html: str = RendererHTML.fence(renderer, tokens, index, options, env)
    return html.replace("<pre>", '<pre tabindex="0">', 1)


def _code_block(*arguments: Any) -> str:
    html: str = RendererHTML.code_block(*arguments)
    return html.replace("<pre>", '<pre tabindex="0">', 1)


def _table_open(*_: Any) -> str:
    return '<div class="table" tabindex="0"><table>\n'


def _table_close(*_: Any) -> str:
    return "</table></div>\n"


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "xhtmlOut": False})
    parser.enable(["table", "strikethrough"]).disable(["image", "html_block", "html_inline"])
    parser.validateLink = lambda url: _LINK.match(url) is not None  # type: ignore[method-assign]
    rules = {
        "link_open": _link_open,
        "heading_open": _heading,
        "heading_close": _heading,
        "fence": _fence,
        "code_block": _code_block,
        "table_open": _table_open,
        "table_close": _table_close,
    }
    for name, rule in rules.items():
        parser.add_render_rule(name, rule)
    return parser


_PARSER = _parser()
