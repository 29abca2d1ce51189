#!/usr/bin/env python3
"""Gathers about 100 MB of real English text from distribution packages and splits it for training.

As the quickstart's gather_corpus.py, with another list of packages, an English filter, more formats
and 1 % of the documents held out. A document is a chapter, a page or an entry. A paragraph that
occurred before, in whichever document, is dropped, so that no paragraph is in both splits.

Standard library only. Exit codes: 0 done, 2 usage, 3 too little text or a damaged package.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import english_text  # noqa: E402
from jiboia_data import package_text, text_cleaning  # noqa: E402

if __name__ == "__main__":
    package_text.gather_and_split(
        __doc__,
        HERE / "packages.json",
        minimum_bytes=60_000_000,
        cleaner=text_cleaning.Cleaner(english_text.is_english),
        readers=english_text.READERS,
        held_out=0.01,
    )
