"""The learning run's tools: the English filter, readers, n-gram models of any order, xz."""

import collections
import json
import os
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(os.environ["JIBOIA_SOURCE_DIR"]) / "scripts"
sys.path[:0] = [str(SCRIPTS / "learning_run"), str(SCRIPTS / "quickstart")]

import baselines  # noqa: E402
import english_text  # noqa: E402
import kneser_ney  # noqa: E402
from text_cleaning import one_line  # noqa: E402

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


def counted_by_hand(tokens, vocab_size, order):
    """P(context + (token,)) of the same model, from dictionaries and the formulas as they stand."""

    def level(counts):
        discount = kneser_ney.discounts(np.array(list(counts.values())))

        def probability(ngram, below):
            following = [c for n, c in counts.items() if n[:-1] == ngram[:-1]]
            if not following:
                return below
            taken = sum(discount[min(c, 3)] for c in following)
            count = counts.get(ngram, 0)
            return (count - discount[min(count, 3)] + taken * below) / sum(following)

        return probability

    def ngrams(n):
        return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    levels = [
        level(collections.Counter(ngram[1:] for ngram in set(ngrams(n + 1))))
        for n in range(1, order)
    ] + [level(collections.Counter(ngrams(order)))]

    def probability(ngram):
        result = 1 / vocab_size
        for n, at in enumerate(levels, 1):
            if n <= len(ngram):
                result = at(ngram[-n:], result)
        return result

    return probability


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_kneser_ney_agrees_with_dictionaries(order):
    generator = np.random.default_rng(5)
    tokens = np.minimum(generator.zipf(1.5, 400) - 1, 7).astype(np.uint16)
    held_out = np.minimum(generator.zipf(1.4, 100) - 1, 9).astype(np.uint16)  # 8 and 9 are new
    model = kneser_ney.KneserNey(tokens, 10, 5)
    by_hand = counted_by_hand(tokens.tolist(), 10, order)
    text = held_out.tolist()
    expected = [by_hand(tuple(text[max(0, i - order + 1) : i + 1])) for i in range(len(text))]
    assert model.probabilities(held_out, order) == pytest.approx(expected, rel=1e-12)


def test_kneser_ney_sums_to_one_in_every_context():
    generator = np.random.default_rng(7)
    tokens = np.minimum(generator.zipf(1.3, 4000) - 1, 39).astype(np.uint16)
    model = kneser_ney.KneserNey(tokens, 50, 4)
    for start in [*range(0, 200, 10), len(tokens) - 3]:  # the last context has no successor
        context = tokens[start : start + 3]
        every = [model.probabilities(np.append(context, token), 4)[-1] for token in range(50)]
        assert min(every) > 0
        assert sum(every) == pytest.approx(1, rel=1e-12)


def test_longer_contexts_help_where_the_text_needs_them():
    generator = np.random.default_rng(11)
    tokens = generator.integers(0, 16, 20000)
    for i in range(2, len(tokens)):  # the token before says nothing, the two before say all
        tokens[i] = (tokens[i - 1] + tokens[i - 2] + (generator.random() < 0.1)) % 16
    result = baselines.ngram_baselines(tokens[:18000], 16, tokens[18000:], 0.25, 3)
    assert list(result) == ["unigram", "2-gram", "3-gram"]
    bits = {name: value["nats_per_token"] / np.log(2) for name, value in result.items()}
    assert bits["unigram"] > 3.9 and bits["2-gram"] > 3.9 and 0.4 < bits["3-gram"] < 0.7
    assert result["3-gram"]["bits_per_byte"] == pytest.approx(bits["3-gram"] / 4)


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
