#!/usr/bin/env python3
"""What counting and xz achieve on held-out text, in bits per byte: what a language model must beat.

The n-gram models (kneser_ney.py, and the quickstart's unigram) see the training tokens, and
predict those targets that the trainer validates on: all tokens but the first, and without the tail
that fills no row of --seq-len tokens. xz gets the held-out text alone, and after the training
text: what it adds to that one's compressed size, with a dictionary that spans both. Documents end
with a line feed.

Writes JSON.
"""

import argparse
import json
import lzma
import math
import sys
from pathlib import Path

import numpy as np
from kneser_ney import KneserNey

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quickstart"))

from ngram_baseline import Unigram, nats_per_token, read_shards  # noqa: E402
from train_tokenizer import texts  # noqa: E402


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


def ngram_baselines(train, vocab_size, held_out, tokens_per_byte, order):
    """Nats per token and bits per byte of the targets held_out[1:]."""
    nats = {"unigram": nats_per_token(Unigram(train, vocab_size), held_out)}
    model = KneserNey(train, vocab_size, order)
    for n in range(2, order + 1):
        nats[f"{n}-gram"] = float(-np.log(model.probabilities(held_out, n)[1:]).mean())
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
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="the text")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="its token shards")
    parser.add_argument("--seq-len", type=int, required=True, metavar="N")
    parser.add_argument("--order", type=int, default=5, metavar="N", help="default: %(default)s")
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
    ngrams = ngram_baselines(
        train, manifest["vocab_size"], held_out, tokens_per_byte, options.order
    )
    report(ngrams)
    documents = (texts(options.corpus / f"{name}.jsonl") for name in ("train", "validation"))
    xz = xz_baselines(*map(list, documents))
    report(xz)
    result |= ngrams | xz
    partial = options.output.with_name(options.output.name + ".part")
    partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    partial.rename(options.output)


if __name__ == "__main__":
    main()
