"""The learning run's tools: the English filter, readers, xz."""

import json
import os
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(os.environ["JIBOIA_SOURCE_DIR"]) / "scripts"
sys.path.insert(0, str(SCRIPTS / "learning_run"))

import baselines  # noqa: E402
import english_text  # noqa: E402
from jiboia_data.text_cleaning import one_line  # noqa: E402

SENTENCE = "It is a truth universally acknowledged, that a single man must be in want of a wife."


def documents(reader, text):
    return [[one_line(p) for p in d if p.strip()] for d in english_text.READERS[reader](text)]


@pytest.mark.parametrize(
    "paragraph, verdict",
    [
        (SENTENCE, True),
        ("Este é o diretório raiz, que contém os outros diretórios do sistema.", False),
        ("Es ist ein Mann in der Stadt und die Frau ist in dem Haus, was er so will.", False),
        ("return do_it(a, b) if it.is_in(this) else that[of + the]; // to be or not", False),
        ("Table of Contents", False),
        ("", False),
    ],
)
def test_language_filter(paragraph, verdict):
    assert english_text.is_english(paragraph) is verdict


def test_html_leaves_out_marks_of_reference_and_can_be_cut_at_sections():
    page = """<h1>One<a class="headerlink" href="#">no</a></h1><p>See <gui>File</gui>.</p>
      <div class="highlight"><pre>no</pre></div><H2>Two</H2><p>Text.</p><h2 id="a">Three</h2>"""
    assert documents("html", page) == [["One", "See File.", "Two", "Text.", "Three"]]
    assert documents("html sections", page) == [["One", "See File."], ["Two", "Text."], ["Three"]]


def test_sword_modules_give_a_document_per_chapter():
    books = [
        '<title>Luke</title><chapter n="1" osisID="Luke.1" sID="a"/><verse sID="v"/>'
        '<w lemma="x">In</w> the days<note>no</note> of <hi type="bold">Herod</hi>.<verse eID="v"/>'
        '<chapter eID="a"/>',
        '<chapter n="2" osisID="Luke.2" sID="b"/>And so é.<div sID="p" type="x-p"/>Next.',
    ]
    data = b"\x78 no stream \x78\x9c".join(zlib.compress(book.encode()) for book in books)
    assert documents("sword", data.decode("latin-1")) == [
        ["Luke"], ["In the days of Herod."], ["And so é.", "Next."],
    ]


def test_r_vectors_give_a_document_per_chapter():
    lines = ["EMMA", "", "CHAPTER I", "", "Emma Woodhouse,", "handsome.", "", "Two."]
    lines += ["Chapter 2", "End."]
    strings = b"".join(b"\0\4\0\x09" + len(x).to_bytes(4, "big") + x.encode() for x in lines)
    data = b"\0\0\1\0" + zlib.compress(b"X\n\0\0\0\3" + strings + b"\0\0\4\2")
    assert documents("r lines", data.decode("latin-1")) == [
        ["EMMA"], ["CHAPTER I", "Emma Woodhouse, handsome.", "Two."], ["Chapter 2 End."],
    ]


def test_dictionaries_give_a_document_per_headword():
    text = (
        'Abjure \\Ab*jure"\\, v. t.\n   1. To renounce {upon}\n      oath.\n      [1913 Webster]\n\n'
        "   2. To\n   reject.\n\nActor\n\n   An {object}.\n"
    )
    assert documents("dictionary", text) == [
        ["Abjure , v. t.", "1. To renounce upon oath.", "2. To reject."], ["Actor", "An object."],
    ]


def test_pod_loses_codes_commands_and_examples():
    text = "=head1 NAME\n\nUse B<I<this>> or C<< a->b >>, L<see|perlop>.\n\n    no();\n\n"
    text += "End.\n\n=cut\n"
    assert documents("pod", text) == [["Use this or a->b, see.", "End."]]


def test_xz_after_the_training_text_pays_only_for_what_is_new():
    words = np.random.default_rng(3).integers(0, 1 << 30, 4000)
    train = [" ".join(map(str, words[i : i + 20])) for i in range(0, 4000, 20)]
    known = baselines.xz_baselines(train, train[50:100])
    assert known["xz"]["bits_per_byte"] > 3
    assert known["xz_after_train"]["bits_per_byte"] < 0.1
    assert known["xz_after_train"]["dictionary_bytes"] == 1 << 26


def test_packages_are_complete():
    packages = json.loads((SCRIPTS / "learning_run/packages.json").read_text(encoding="utf-8"))
    for package in packages:
        assert package["format"] in english_text.READERS and package["licence"]
        assert all(len(h) == 64 for hashes in package["sha256"].values() for h in hashes)
