#!/usr/bin/env python3
"""What counting and xz achieve on held-out text, in bits per byte: what a language model must beat.

The n-gram models (jiboia_data/ngrams.py) see the training tokens, and predict those targets that
the trainer validates on: all tokens but the first, and without the tail that fills no row of
--seq-len tokens. They are probability distributions over the whole vocabulary, so their losses
compare with that of any language model of the same tokens. With --corpus, xz gets the held-out text
alone, and after the training text: what it adds to that one's compressed size, with a dictionary
that spans both. Documents end with a line feed.

Writes JSON: nats per token and bits per byte of each.
"""

import argparse
import json
import lzma
import math
from pathlib import Path

import h5py
import numpy as np

from jiboia_data import ngrams
from jiboia_data.package_text import texts
from jiboia_data.shards import json_bytes, write_atomically

DISCOUNTS = {"one": ngrams.one_discount, "three": ngrams.three_discounts}


def read_shards(folder):
    """The tokens of a folder of shards, in order, and its manifest."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    parts = []
    for entry in manifest["files"]:
        with h5py.File(folder / entry["name"], "r") as shard:
            parts.append(shard["tokens"][...].reshape(-1))
    return np.concatenate(parts), manifest


def xz_size(data, dictionary):
    """Bytes of `data` after `xz -9e` with a dictionary of that many bytes; 9e itself has 2^26."""
    preset = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}
    return len(lzma.compress(data, filters=[preset | {"dict_size": dictionary}]))


def xz_baselines(train, held_out):
    """Bits per byte of the held-out documents, alone and after the training documents."""
    text = {
        name: "".join(document + "\n" for document in documents).encode("utf-8")
        for name, documents in (("train", train), ("held_out", held_out))
    }
    size = len(text["held_out"]) - len(held_out)
    dictionary = 1 << max(26, (len(text["train"]) + len(text["held_out"])).bit_length())
    alone = xz_size(text["held_out"], 1 << 26)
    before = xz_size(text["train"], dictionary)
    both = xz_size(text["train"] + text["held_out"], dictionary)
    return {
        "xz": {"bits_per_byte": 8 * alone / size, "bytes": alone},
        "xz_after_train": {
            "bits_per_byte": 8 * (both - before) / size,
            "bytes": both - before,
            "train_bytes": before,
            "dictionary_bytes": dictionary,
        },
    }


def ngram_baselines(train, vocab_size, held_out, tokens_per_byte, order, discounts):
    """Nats per token and bits per byte of the targets held_out[1:]."""
    probabilities = {"unigram": ngrams.unigram(train, vocab_size)[held_out]}
    model = ngrams.KneserNey(train, vocab_size, order, discounts)
    for n in range(2, order + 1):
        name = "bigram" if n == 2 else f"{n}-gram"
        probabilities[name] = model.probabilities(held_out, n)
    nats = {name: float(-np.log(p[1:]).mean()) for name, p in probabilities.items()}
    return {
        name: {"nats_per_token": value, "bits_per_byte": value / math.log(2) * tokens_per_byte}
        for name, value in nats.items()
    }


def report(baselines):
    for name, value in baselines.items():
        print(f"  {name:16} {value['bits_per_byte']:.3f} bits per byte", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="token shards: train/, validation/"
    )
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="their text, for xz")
    parser.add_argument("--seq-len", type=int, required=True, metavar="N")
    parser.add_argument("--order", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--discounts",
        choices=DISCOUNTS,
        default="three",
        help="of an order: one, or three as in modified Kneser-Ney (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON to write")
    options = parser.parse_args()
    train, manifest = read_shards(options.data / "train")
    held_out, held_out_manifest = read_shards(options.data / "validation")
    rows = (len(held_out) - 1) // options.seq_len
    if rows < 1:
        parser.error(f"{options.data}/validation has fewer than {options.seq_len + 1} tokens")
    held_out = held_out[: rows * options.seq_len + 1]
    result = {
        "train_tokens": manifest["tokens"],
        "train_bytes": manifest["source_bytes"],
        "held_out_tokens": held_out_manifest["tokens"],
        "held_out_bytes": held_out_manifest["source_bytes"],
        "held_out_targets": len(held_out) - 1,
    }
    tokens_per_byte = held_out_manifest["tokens"] / held_out_manifest["source_bytes"]
    found = ngram_baselines(
        train,
        manifest["vocab_size"],
        held_out,
        tokens_per_byte,
        options.order,
        DISCOUNTS[options.discounts],
    )
    report(found)
    if options.corpus:
        documents = (texts(options.corpus / f"{name}.jsonl") for name in ("train", "validation"))
        xz = xz_baselines(*map(list, documents))
        report(xz)
        found |= xz
    write_atomically(options.output, json_bytes(result | found))


if __name__ == "__main__":
    main()
