"""N-gram models of any order, and the program that compares them with a language model."""

import collections
import json
import math

import numpy as np
import pytest

import baselines
from jiboia_data import ngrams
from programs import write_rows


def counted_by_hand(tokens, vocab_size, order, discounts):
    """P(context + (token,)) of the same model, from dictionaries and the formulas as they stand."""

    def level(counts):
        discount = discounts(np.array(list(counts.values())))

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


@pytest.mark.parametrize("discounts", [ngrams.one_discount, ngrams.three_discounts])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_kneser_ney_agrees_with_dictionaries(order, discounts):
    generator = np.random.default_rng(5)
    tokens = np.minimum(generator.zipf(1.5, 400) - 1, 7).astype(np.uint16)
    held_out = np.minimum(generator.zipf(1.4, 100) - 1, 9).astype(np.uint16)  # 8 and 9 are new
    model = ngrams.KneserNey(tokens, 10, 5, discounts)
    by_hand = counted_by_hand(tokens.tolist(), 10, order, discounts)
    text = held_out.tolist()
    expected = [by_hand(tuple(text[max(0, i - order + 1) : i + 1])) for i in range(len(text))]
    assert model.probabilities(held_out, order) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("discounts", [ngrams.one_discount, ngrams.three_discounts])
def test_kneser_ney_sums_to_one_in_every_context(discounts):
    generator = np.random.default_rng(7)
    tokens = np.minimum(generator.zipf(1.3, 4000) - 1, 39).astype(np.uint16)
    model = ngrams.KneserNey(tokens, 50, 4, discounts)
    for start in [*range(0, 200, 10), len(tokens) - 3]:  # the last context has no successor
        context = tokens[start : start + 3]
        every = [model.probabilities(np.append(context, token), 4)[-1] for token in range(50)]
        assert min(every) > 0
        assert sum(every) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("discounts", [ngrams.one_discount, ngrams.three_discounts])
def test_longer_contexts_help_where_the_text_needs_them(discounts):
    generator = np.random.default_rng(11)
    tokens = generator.integers(0, 16, 20000)
    for i in range(2, len(tokens)):  # the token before says nothing, the two before say all
        tokens[i] = (tokens[i - 1] + tokens[i - 2] + (generator.random() < 0.1)) % 16
    result = baselines.ngram_baselines(tokens[:18000], 16, tokens[18000:], 0.25, 3, discounts)
    assert list(result) == ["unigram", "bigram", "3-gram"]
    bits = {name: value["nats_per_token"] / np.log(2) for name, value in result.items()}
    assert bits["unigram"] > 3.9 and bits["bigram"] > 3.9 and 0.4 < bits["3-gram"] < 0.7
    assert result["3-gram"]["bits_per_byte"] == pytest.approx(bits["3-gram"] / 4)


def test_bigram_matches_hand_computed_values():
    # Pairs: 01 twice, 10 twice, 02 once: discount 1 / (1 + 2 * 2). Each token follows one other: the
    # lower order is uniform. P(1 | 0) = (2 - 0.2) / 3 + 0.2 * 2 / 3 * 1 / 3.
    model = ngrams.KneserNey(np.array([0, 1, 0, 1, 0, 2]), 3, 2, ngrams.one_discount)
    pairs = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 1)]
    found = [model.probabilities(np.array(pair), 2)[1] for pair in pairs]
    expected = [0.4 / 9, 0.6 + 0.4 / 9, 0.8 / 3 + 0.4 / 9, 0.9 + 0.1 / 3, 1 / 3]
    assert found == pytest.approx(expected, rel=1e-12)


def test_unigram_counts_what_it_never_saw():
    assert ngrams.unigram(np.array([0, 0, 2]), 4).tolist() == [3 / 7, 1 / 7, 2 / 7, 1 / 7]


def test_program_writes_both_measures_of_whole_rows(tmp_path, monkeypatch, capsys):
    for name in ("train", "validation"):
        write_rows(tmp_path / name, np.tile(np.arange(16), 10).reshape(-1, 16), 16)
        path = tmp_path / name / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"source_bytes": 2 * manifest["tokens"]}))
    arguments = ["baselines.py", "--data", str(tmp_path), "--order", "2", "--discounts", "one"]
    arguments += ["--output", str(tmp_path / "out.json"), "--seq-len"]
    monkeypatch.setattr("sys.argv", [*arguments, "50"])
    baselines.main()
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["held_out_targets"] == 150 and result["train_tokens"] == 160
    assert result["unigram"]["nats_per_token"] == pytest.approx(math.log(16))
    assert result["unigram"]["bits_per_byte"] == pytest.approx(2)
    assert result["bigram"]["nats_per_token"] < 0.2
    monkeypatch.setattr("sys.argv", [*arguments, "160"])
    with pytest.raises(SystemExit):
        baselines.main()
    assert "fewer than 161 tokens" in capsys.readouterr().err
