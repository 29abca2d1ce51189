#!/usr/bin/env python3
"""Gathers real Portuguese text from distribution packages and splits it for training.

The packages of packages.json are fetched with `apt-get download` into --packages and unpacked there,
not installed. Their text is cleaned and 2 % of the documents, chosen by a hash of their text, are
held out. Written, the last one last:

  train.jsonl, validation.jsonl   one document a line: {"source": ..., "text": ...}
  corpus.json                     packages with versions, hashes and licences; counts

Standard library only. Exit codes: 0 done, 2 usage, 3 too little text or a damaged package.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from jiboia_data import package_text, text_cleaning  # noqa: E402

if __name__ == "__main__":
    package_text.gather_and_split(
        __doc__,
        HERE / "packages.json",
        minimum_bytes=3_000_000,
        cleaner=text_cleaning.Cleaner(text_cleaning.is_portuguese),
        readers=text_cleaning.READERS,
        held_out=0.02,
    )
