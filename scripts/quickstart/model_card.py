#!/usr/bin/env python3
"""Writes the model card (README.md) of the quickstart's exported model."""

import argparse
import json
from pathlib import Path

CARD = """---
language: pt
library_name: transformers
pipeline_tag: text-generation
tags: [mamba, jiboia]
---
# Quickstart model

A Mamba-1 language model of {parameters:,} parameters, trained from scratch in minutes on a CPU by
Jiboia's `scripts/quickstart.sh`. It shows that the pipeline works. It has read {megabytes:.1f} MB of
technical Portuguese: expect well-formed words, not facts.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIR")
model = AutoModelForCausalLM.from_pretrained("DIR")
inputs = tokenizer({prompt!r}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=60, do_sample=True)[0]))
```

## Held-out loss

{targets:,} tokens of documents that were kept from training.

| Model | Nats per token | Bits per byte |
|---|---|---|
| unigram | {unigram[nats_per_token]:.3f} | {unigram[bits_per_byte]:.3f} |
| Kneser-Ney bigram | {bigram[nats_per_token]:.3f} | {bigram[bits_per_byte]:.3f} |
| this model | {model[nats_per_token]:.3f} | {model[bits_per_byte]:.3f} |

## Training text and its licences

The text comes from distribution packages and is not part of this folder. Its licences are listed here
because whoever passes the model on should know what it was trained on.

| Package | Version | Contents | Licence | Text, bytes |
|---|---|---|---|---|
{packages}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--summary", type=Path, required=True, help="summary.json")
    parser.add_argument("--prompt", required=True, help="a prompt for the example")
    parser.add_argument("--output", type=Path, required=True, help="README.md to write")
    options = parser.parse_args()
    summary = json.loads(options.summary.read_text(encoding="utf-8"))
    rows = [
        "| {name} | {version} | {contents} | {licence} | {bytes:,} |".format(**package)
        for package in summary["packages"]
    ]
    card = CARD.format(
        parameters=summary["parameters"],
        megabytes=summary["train_bytes"] / 1e6,
        prompt=options.prompt,
        targets=summary["held_out_targets"],
        unigram=summary["unigram"],
        bigram=summary["bigram"],
        model=summary["model"],
        packages="\n".join(rows),
    )
    options.output.write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
