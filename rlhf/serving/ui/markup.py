"""Text as safe HTML: what people typed exactly as typed, what models wrote as Markdown.

Nothing in the result runs, and nothing makes the browser ask another host. HTML in a text is shown as text, so that
`<thinking>` stays visible. Images are not drawn, because loading one would tell its host what was written. Links lead
only to http and https, open in a new tab, and send no referrer.
"""

import html
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

LINKS = ("http://", "https://")
# A heading of an answer must not compete with those of the page.
LOWEST_HEADING = 3
BLOCKED_IN_ATTRIBUTES = dict.fromkeys([*range(32), 127])


def typed_html(text: str) -> str:
    """Text as its writer typed it. The style sheet keeps its spaces and lines."""
    return html.escape(text)


def answer_html(text: str) -> str:
    """Markdown of a model."""
    return _markdown().render(text)


@cache
def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True})
    # CommonMark has neither of the two.
    markdown.enable(["table", "strikethrough"]).disable("image")
    markdown.validateLink = is_web_link
    # Before the rule that would take the stars.
    markdown.inline.ruler.before("emphasis", "product", _stars_in_a_word)
    markdown.add_render_rule("link_open", _link_open)
    markdown.add_render_rule("fence", _code)
    markdown.add_render_rule("code_block", _code)
    markdown.add_render_rule("heading_open", _heading)
    markdown.add_render_rule("heading_close", _heading)
    return markdown


def is_web_link(address: str) -> bool:
    """Only what a browser opens as another page: not javascript:, data:, file: or a path of this server."""
    return address.translate(BLOCKED_IN_ATTRIBUTES).strip().lower().startswith(LINKS)


def _stars_in_a_word(state: StateInline, silent: bool) -> bool:
    """Keep the stars of 2*3*4 and a**b, which CommonMark would take for emphasis.

    Only between ASCII letters and digits: in Korean, emphasis ends inside a word.
    """
    start = state.pos
    if state.src[start] != "*" or start == 0:
        return False
    end = start
    while end < state.posMax and state.src[end] == "*":
        end += 1
    # at the end of the line they close emphasis, if anything
    if end >= state.posMax:
        return False
    if not (_is_word(state.src[start - 1]) and _is_word(state.src[end])):
        return False
    if not silent:
        state.pending += state.src[start:end]
    state.pos = end
    return True


def _is_word(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _link_open(renderer, tokens: list[Token], index: int, options, env) -> str:
    token = tokens[index]
    token.attrSet("target", "_blank")
    token.attrSet("rel", "noopener noreferrer nofollow")
    token.attrs.pop("title", None)  # it may say another address than the real one
    return renderer.renderToken(tokens, index, options, env)


def _code(renderer, tokens: list[Token], index: int, options, env) -> str:
    """A code block. The page adds a copy button to it."""
    code = html.escape(tokens[index].content)
    return f"<pre class='code' tabindex='0'><code>{code}</code></pre>\n"


def _heading(renderer, tokens: list[Token], index: int, options, env) -> str:
    token = tokens[index]
    # "h1" -> 4
    level = min(6, int(token.tag[1]) + LOWEST_HEADING)
    mark = "/" if token.nesting < 0 else ""
    return f"<{mark}h{level}>"
