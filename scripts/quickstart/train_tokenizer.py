#!/usr/bin/env python3
"""Trains a byte-level BPE tokenizer on the `text` fields of JSON lines.

Writes tokenizer.json and tokenizer_config.json, which transformers opens with AutoTokenizer
(PreTrainedTokenizerFast). Every byte is in the vocabulary, so any UTF-8 text survives a round trip.
Token 0 is <|endoftext|>: it ends documents, and serves as bos, eos and pad token. The same text gives
the same files.
"""

import argparse
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jiboia_data.package_text import texts  # noqa: E402

END_OF_TEXT = "<|endoftext|>"


def train(documents, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("documents", type=Path, metavar="FILE.jsonl", help="the training split")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--vocab-size", type=int, default=2048, help="default: %(default)s")
    options = parser.parse_args()
    tokenizer = train(texts(options.documents), options.vocab_size)
    if tokenizer.get_vocab_size() != options.vocab_size:
        parser.error(
            f"the text gives {tokenizer.get_vocab_size()} tokens only, --vocab-size is {options.vocab_size}"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(options.output / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000,
        # Without this, tokenizer(text) also gives token_type_ids, which Mamba's generate() refuses.
        "model_input_names": ["input_ids", "attention_mask"],
    }
    # Written last: its presence says that both files are whole.
    (options.output / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"  {options.vocab_size} tokens, learned from {options.documents}")


if __name__ == "__main__":
    main()
