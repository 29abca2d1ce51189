"""From package files to plain Portuguese paragraphs. Standard library only.

A reader turns the text of one file into documents; a document is a list of paragraphs, each one line
without markup. READERS names the readers for packages.json.
"""

import re
import unicodedata
import zlib
from html.parser import HTMLParser

PORTUGUESE_WORDS = frozenset(
    "a ao aos as até com como da das de do dos e ela ele eles em entre essa esse esta este está foi "
    "isso já mais mas muito na nas no nos não o os ou para pela pelas pelo pelos pode por qual quando "
    "que se sem ser seu seus sua suas são também tem um uma uns umas você à às é".split()
)
# Words that Portuguese does not have: they tell untranslated paragraphs.
ENGLISH_WORDS = frozenset(
    "an and are at be by can for from has have if in is it not of on or that the this to was when "
    "which will with you your".split()
)
WORD = re.compile(r"[^\W\d_]+")
SPACE = re.compile(r"\s+")


def one_line(text):
    """`text` in Unicode's composed form (NFC), each run of white space as one space."""
    return SPACE.sub(" ", unicodedata.normalize("NFC", text)).strip()


def is_portuguese(paragraph):
    """True for running Portuguese text: letters and spaces for the most part, and of four or more
    words at least a fifth Portuguese function words, few English ones. Headings, code and tables do
    not pass."""
    prose = sum(character.isalpha() or character == " " for character in paragraph)
    words = [word.lower() for word in WORD.findall(paragraph)]
    portuguese = sum(word in PORTUGUESE_WORDS for word in words)
    english = sum(word in ENGLISH_WORDS for word in words)
    return (
        prose >= 0.85 * len(paragraph)
        and len(words) >= 4
        and portuguese * 5 >= len(words)
        and portuguese > 2 * english
    )


def repeats_itself(text):
    """True when zlib shrinks `text` below 15 %: tables and lists of near-copies do, prose does not."""
    data = text.encode("utf-8")
    return len(zlib.compress(data, 6)) < 0.15 * len(data)


class HtmlParagraphs(HTMLParser):
    """Collects the paragraphs of a page, without navigation, code and scripts."""

    SKIPPED = {"script", "style", "head", "nav", "header", "footer", "aside", "pre", "button"}
    SKIPPED_CLASSES = {"toc", "navheader", "navfooter"}
    INLINE = {"a", "abbr", "acronym", "b", "bdi", "cite", "code", "em", "font", "i", "kbd", "q", "s"}
    INLINE |= {"samp", "small", "span", "strong", "sub", "sup", "tt", "u", "var", "wbr"}
    VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "wbr"}

    def __init__(self):
        super().__init__()
        self.paragraphs = [""]
        self.skipped = []  # open elements, from the outermost skipped one on

    def handle_starttag(self, tag, attrs):
        if tag not in self.INLINE:
            self.paragraphs.append("")
        if tag in self.VOID:
            return
        classes = set((dict(attrs).get("class") or "").split())
        if self.skipped or tag in self.SKIPPED or classes & self.SKIPPED_CLASSES:
            self.skipped.append(tag)

    def handle_startendtag(self, tag, attrs):
        if tag not in self.INLINE:
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        if tag in self.skipped:  # also closes what the page left open inside
            while self.skipped.pop() != tag:
                pass
        if tag not in self.INLINE:
            self.paragraphs.append("")

    def handle_data(self, data):
        if not self.skipped:
            self.paragraphs[-1] += data


def read_html(text):
    """One document: the page."""
    page = HtmlParagraphs()
    page.feed(text)
    page.close()
    return [page.paragraphs]


ROFF_ESCAPES = [
    (re.compile(r'\\".*'), ""),  # comment
    (re.compile(r"\\f(\[[^]]*\]|\(..|.)"), ""),  # font
    (re.compile(r"\\s[-+]?\d"), ""),  # size
    (re.compile(r"\\\(lq|\\\(rq|\\\(dq|\\\[dq\]"), '"'),
    (re.compile(r"\\\(aq|\\\(cq|\\\(oq"), "'"),
    (re.compile(r"\\\((em|en)|\\\[(em|en)\]"), "-"),
    (re.compile(r"\\(\(..|\[[^]]*\]|\*\(..|\*\[[^]]*\])"), " "),  # other characters and strings
    (re.compile(r"\\[ ~0]"), " "),
    (re.compile(r"\\[&|^/,:%cd]"), ""),
    (re.compile(r"\\-"), "-"),
    (re.compile(r"\\e|\\\\"), "\\\\"),
    (re.compile(r"\\(.)"), r"\1"),
]
ROFF_INLINE_MACROS = {"B", "I", "R", "BR", "RB", "IR", "RI", "BI", "IB", "SM", "SB"}
ROFF_ARGUMENT = re.compile(r'"([^"]*)"|(\S+)')


def read_roff(text):
    """One document: the manual page. Tables and examples are left out."""
    paragraphs, inside = [""], None
    for line in text.splitlines():
        macro = re.match(r"[.']\s*(\S+)\s*(.*)", line)
        name = macro.group(1) if macro else None
        if inside:
            inside = None if name == inside else inside
        elif name in ("TS", "nf", "EX"):
            inside = {"TS": "TE", "nf": "fi", "EX": "EE"}[name]
            paragraphs.append("")
        elif name in ROFF_INLINE_MACROS:
            arguments = ["".join(pair) for pair in ROFF_ARGUMENT.findall(macro.group(2))]
            joint = " " if len(name) == 1 or name in ("SM", "SB") else ""
            paragraphs[-1] += " " + joint.join(arguments)
        elif macro or line.startswith(".") or not line.strip():
            paragraphs.append("")
        else:
            paragraphs[-1] += " " + line
    for pattern, replacement in ROFF_ESCAPES:
        paragraphs = [pattern.sub(replacement, paragraph) for paragraph in paragraphs]
    return [paragraphs]


def read_manual(text):
    """One document per section of a plain text manual: headings such as `7.2. Title` begin one. What
    stands before the first, the table of contents, is left out."""
    text = re.sub(r"(?m)^[-=~*]{3,}$", "", text)  # underlines of headings
    text = re.sub(r"`([^'`\n]+)'", r"\1", text)  # `code'
    text = re.sub(r"\b_([^_\n]+)_\b", r"\1", text)  # _emphasis_
    sections = re.split(r"(?m)^(?=\d+\.\d+\.? +\S)", text)[1:]
    return [re.split(r"\n[ \t]*\n", section) for section in sections]


def read_fortunes(text):
    """One document per saying: they are separated by lines with a percent sign."""
    return [[saying] for saying in re.split(r"(?m)^%\n?", text)]


READERS = {
    "html": read_html,
    "roff": read_roff,
    "manual": read_manual,
    "fortunes": read_fortunes,
}


class Cleaner:
    """Keeps paragraphs of the wanted language that did not occur before, of documents that do not repeat
    themselves. Its memory spans packages, so their order decides who keeps a shared paragraph."""

    def __init__(self, is_wanted):
        self.is_wanted = is_wanted
        self.seen = set()

    def clean(self, paragraphs):
        """The document's text, one paragraph a line; empty when nothing remains."""
        kept = []
        for paragraph in map(one_line, paragraphs):
            if self.is_wanted(paragraph) and paragraph not in self.seen:
                self.seen.add(paragraph)
                kept.append(paragraph)
        text = "\n".join(kept)
        return "" if repeats_itself(text) else text
