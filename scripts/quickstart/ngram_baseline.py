#!/usr/bin/env python3
"""What counting alone achieves: a unigram and a bigram model of the training tokens, on held-out ones.

Both are probability distributions over the whole vocabulary, so their losses compare with that of
any language model of the same tokens. The unigram has add-one smoothing. The bigram is interpolated
Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1999, equation 17) with the discount
n1 / (n1 + 2 n2) of Ney, Essen and Kneser 1994; its lower order is discounted in the same way and
interpolated with the uniform distribution, so that no token has probability zero.

Writes JSON: nats per token and bits per byte of each. The targets are those of rows of --seq-len
tokens: all tokens but the first, and without the tail that fills no row.
"""

import argparse
import json
import math
from pathlib import Path

import h5py
import numpy as np


class Unigram:
    def __init__(self, tokens, vocab_size):
        counts = np.bincount(tokens, minlength=vocab_size) + 1.0
        self.probability = counts / counts.sum()

    def probabilities(self, previous, token):
        """P(token), elementwise; the token before does not matter."""
        del previous
        return self.probability[token]


def discount(counts):
    """n1 / (n1 + 2 n2), where n_k is how many counts equal k; one half where there are no ones."""
    ones, twos = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return ones / (ones + 2 * twos) if ones else 0.5


class KneserNeyBigram:
    def __init__(self, tokens, vocab_size):
        self.vocab_size = vocab_size
        pairs = tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]
        self.pairs, self.pair_counts = np.unique(pairs, return_counts=True)
        self.discount = discount(self.pair_counts)
        first, second = np.divmod(self.pairs, vocab_size)
        self.context_counts = np.bincount(first, self.pair_counts, vocab_size)
        self.followers = np.bincount(first, minlength=vocab_size)  # distinct tokens after each
        # The lower order counts in how many contexts a token was seen, not how often.
        contexts = np.bincount(second, minlength=vocab_size)
        lower_discount = discount(contexts)
        reserved = lower_discount * np.count_nonzero(contexts) / contexts.sum()
        self.lower = np.maximum(contexts - lower_discount, 0) / contexts.sum() + reserved / vocab_size

    def probabilities(self, previous, token):
        """P(token | previous), elementwise over two arrays of one shape."""
        wanted = previous.astype(np.int64) * self.vocab_size + token
        place = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        seen = np.where(self.pairs[place] == wanted, self.pair_counts[place], 0)
        context = self.context_counts[previous]
        at_least_one = np.maximum(context, 1)
        higher = np.maximum(seen - self.discount, 0) / at_least_one
        # What the discounts took goes to the lower order; everything does after an unseen context.
        weight = np.where(
            context > 0, self.discount * self.followers[previous] / at_least_one, 1.0
        )
        return higher + weight * self.lower[token]


def nats_per_token(model, tokens):
    """Mean of -log P over all tokens but the first, each given the one before it."""
    return float(-np.log(model.probabilities(tokens[:-1], tokens[1:])).mean())


def read_shards(folder):
    """The tokens of a folder of shards, in order, and its manifest."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    parts = []
    for entry in manifest["files"]:
        with h5py.File(folder / entry["name"], "r") as shard:
            parts.append(shard["tokens"][...].reshape(-1))
    return np.concatenate(parts), manifest


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True, metavar="DIR", help="token shards")
    parser.add_argument("--validation", type=Path, required=True, metavar="DIR", help="token shards")
    parser.add_argument("--seq-len", type=int, required=True, metavar="N")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON to write")
    options = parser.parse_args()
    train, manifest = read_shards(options.train)
    held_out, held_out_manifest = read_shards(options.validation)
    rows = (len(held_out) - 1) // options.seq_len
    if rows < 1:
        parser.error(f"{options.validation} has fewer than {options.seq_len + 1} tokens")
    held_out = held_out[: rows * options.seq_len + 1]
    tokens_per_byte = held_out_manifest["tokens"] / held_out_manifest["source_bytes"]
    result = {"train_tokens": len(train), "held_out_targets": len(held_out) - 1}
    for name, kind in (("unigram", Unigram), ("bigram", KneserNeyBigram)):
        nats = nats_per_token(kind(train, manifest["vocab_size"]), held_out)
        bits = nats / math.log(2) * tokens_per_byte
        result[name] = {"nats_per_token": nats, "bits_per_byte": bits}
        print(f"  {name}: {nats:.3f} nats per token, {bits:.3f} bits per byte")
    partial = options.output.with_name(options.output.name + ".part")
    partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    partial.rename(options.output)


if __name__ == "__main__":
    main()
