"""From package files to plain English paragraphs. Standard library only.

Readers for formats that jiboia_data/text_cleaning.py does not know, and for its HTML with what larger
manuals add to it. READERS names all of them for packages.json.
"""

import re
import zlib

from jiboia_data import text_cleaning

FUNCTION_WORDS = frozenset(
    "a about after all also an and any are as at be because been before but by can could do does "
    "each for from had has have he her him his how i if in into is it its may me more most my no "
    "not of on one only or other our out over she should so some such than that the their them "
    "then there these they this those thou to under up us was we were what when where which while "
    "who will with would ye you your".split()
)
# Words that English does not have: they tell translations and quotations.
FOREIGN_WORDS = frozenset(
    "che como con das dass de della den der des die du ein eine el en est et il ist la las le les "
    "los mit não och os para pas por pour que qui sich sind um una und une von y zu är".split()
)


def is_english(paragraph):
    """True for running English text: letters and spaces for the most part, at least six words, and
    of these a quarter English function words, few foreign ones."""
    prose = sum(character.isalpha() or character == " " for character in paragraph)
    if prose < 0.85 * len(paragraph):
        return False
    words = [word.lower() for word in text_cleaning.WORD.findall(paragraph)]
    english = sum(word in FUNCTION_WORDS for word in words)
    foreign = sum(word in FOREIGN_WORDS for word in words)
    return len(words) >= 6 and english * 4 >= len(words) and english > 2 * foreign


class ManualParagraphs(text_cleaning.HtmlParagraphs):
    """Also for Sphinx's pages, Mallard's and OSIS's: more is left out, and more is inline."""

    SKIPPED = text_cleaning.HtmlParagraphs.SKIPPED | {"footnote", "info", "note"}
    SKIPPED_CLASSES = text_cleaning.HtmlParagraphs.SKIPPED_CLASSES | set(
        "footer header headerlink highlight navigation related sphinxsidebar".split()
    )
    INLINE = text_cleaning.HtmlParagraphs.INLINE | set(
        "app cmd divinename file footnote foreign gui guiseq hi input key keyseq link milestone "
        "name note output reference sys transchange verse w".split()
    )


def html_paragraphs(text):
    page = ManualParagraphs()
    page.feed(text)
    page.close()
    return page.paragraphs


def read_html(text):
    """One document: the page."""
    return [html_paragraphs(text)]


def read_html_sections(text):
    """One document per section under a heading of the second rank, and one of what comes first."""
    return [html_paragraphs(section) for section in re.split(r"(?i)(?=<h2\b)", text)]


def zlib_streams(data):
    """What the zlib streams of `data` hold, whatever stands between them."""
    place = data.find(b"\x78")
    while place >= 0:
        stream = zlib.decompressobj()
        try:
            content = stream.decompress(data[place:])
        except zlib.error:
            content = b""  # the byte began no stream
        if stream.eof:
            yield content
            place = len(data) - len(stream.unused_data) - 1
        place = data.find(b"\x78", place + 1)


def read_sword(text):
    """One document per chapter of a module of the SWORD project: zlib streams of OSIS. The text has
    the file's bytes as Latin-1."""
    books = b"".join(zlib_streams(text.encode("latin-1"))).decode("utf-8", errors="replace")
    return [html_paragraphs(chapter) for chapter in re.split(r"(?=<chapter [^>]*sID)", books)]


R_STRING = re.compile(rb"\x00\x04\x00\x09(....)", re.DOTALL)


def read_r_lines(text):
    """One document per chapter of R's lazily loaded character vectors, a book's lines each: zlib
    streams of XDR serialization. The text has the file's bytes as Latin-1."""
    documents = []
    for data in zlib_streams(text.encode("latin-1")):
        lines, place = [], 0
        while found := R_STRING.match(data, place) or R_STRING.search(data, place):
            place = found.end() + int.from_bytes(found.group(1), "big")
            lines.append(data[found.end() : place].decode("utf-8", errors="replace").strip())
        chapters = re.split(r"(?im)^(?=chapter [ivxlc\d]+)", "\n".join(lines))
        documents += [chapter.split("\n\n") for chapter in chapters]
    return documents


def read_dictionary(text):
    """One document per headword of a dictd database: it starts its line, what it says is indented.
    Pronunciations, editors' remarks and marks of reference are left out."""
    text = re.sub(r"\\[^\\\n]*\\", " ", text)
    text = re.sub(r"\[(1913 Webster|PJC|[^\]\n]{0,20}\d{4} Webster[^\]\n]*)\]", "", text)
    text = re.sub(r"[{}]", "", text)
    entries = re.split(r"\n(?=\S)", text)
    return [re.split(r"\n[ \t]*\n|\n[ \t]+(?=\(?[0-9a-z][.)] )", entry) for entry in entries]


POD_CODE = re.compile(r"[A-Z](?:<<+ (.*?) >>+|<([^<>]*)>)", re.DOTALL)


def read_pod(text):
    """One document: Perl's plain old documentation without its commands and its indented
    examples."""
    for _ in range(3):  # codes within codes
        text = POD_CODE.sub(lambda code: (code.group(1) or code.group(2) or "").split("|")[0], text)
    paragraphs = re.split(r"\n[ \t]*\n", text)
    return [[p for p in paragraphs if p.strip() and p[0] not in "= \t"]]


READERS = text_cleaning.READERS | {
    "dictionary": read_dictionary,
    "html": read_html,
    "html sections": read_html_sections,
    "pod": read_pod,
    "r lines": read_r_lines,
    "sword": read_sword,
}
