#!/usr/bin/env python3
"""Gathers about 100 MB of real English text from distribution packages and splits it for training.

As the quickstart's gather_corpus.py, with another list of packages, an English filter, more formats
and 1 % of the documents held out. A document is a chapter, a page or an entry. A paragraph that
occurred before, in whichever document, is dropped, so that no paragraph is in both splits.

Standard library only. Exit codes: 0 done, 2 usage, 3 too little text or a damaged package.
"""

import json
import sys
from pathlib import Path

import english_text

import gather_corpus  # of the quickstart, whose folder english_text puts on the path
import text_cleaning

HERE = Path(__file__).resolve().parent
HELD_OUT = 0.01


def main():
    options = gather_corpus.parse_arguments(__doc__, minimum_bytes=60_000_000)
    packages = json.loads((HERE / "packages.json").read_text(encoding="utf-8"))
    corpus = gather_corpus.gather(
        packages,
        gather_corpus.fetch(packages, options.packages),
        options.output,
        text_cleaning.Cleaner(english_text.is_english),
        english_text.READERS,
        HELD_OUT,
    )
    gather_corpus.finish(corpus, options.output, options.minimum_bytes)


if __name__ == "__main__":
    try:
        main()
    except gather_corpus.CorpusError as error:
        print(f"gather_english.py: {error}", file=sys.stderr)
        sys.exit(3)
