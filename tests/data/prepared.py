"""What the tests of scripts/prepare_data.py share."""

import filecmp
import gzip
import importlib.util
import json
from pathlib import Path

import h5py
import numpy as np
import xxhash
from tokenizers import Tokenizer

SOURCE = Path(__file__).resolve().parents[2]
SCRIPT = SOURCE / "scripts" / "prepare_data.py"
specification = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
prepare_data = importlib.util.module_from_spec(specification)
specification.loader.exec_module(prepare_data)
from jiboia_data import shards as shards_module  # noqa: E402, F401  (the script adds its folder)
from jiboia_data import text as text_module  # noqa: E402, F401

DOCUMENTS = [f"Olá, {i}! Coração 🐍 {'x' * (i % 40)}.\n" * (1 + i % 3) for i in range(300)]


def damaged_gzip(data):
    """Compressed data whose header is sound, but whose first deflate block is of no known kind."""
    compressed = bytearray(gzip.compress(data, mtime=0))
    compressed[10] = 0xFF
    return bytes(compressed)


class Stopped(BaseException):
    """Stands for the death of the process: no handler of the program sees it."""


def run(*arguments):
    return prepare_data.main([str(argument) for argument in arguments])


def read_folder(folder):
    """Manifest, and tokens, document starts and source bytes of the shards one after the other."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(p.name for p in folder.glob("*.h5")) == [f["name"] for f in manifest["files"]]
    tokens, starts, source_bytes, offset = [], [], 0, 0
    for entry in manifest["files"]:
        data = (folder / entry["name"]).read_bytes()
        assert entry["bytes"] == len(data)
        assert entry["xxh3"] == xxhash.xxh3_64_hexdigest(data)
        with h5py.File(folder / entry["name"], "r") as file:
            part = file["tokens"][:]
            assert file["tokens"].fletcher32 and file["tokens"].chunks
            assert part.size == entry["tokens"] == file.attrs["tokens"]
            assert file.attrs["vocab_size"] == manifest["vocab_size"]
            tokens.append(part)
            if "document_starts" in file:
                starts.append(file["document_starts"][:] + offset)
                assert entry["documents"] == len(starts[-1])
        offset += part.size
        source_bytes += entry.get("source_bytes", 0)
    assert manifest["tokens"] == offset
    assert manifest.get("source_bytes", 0) == source_bytes
    return manifest, np.concatenate(tokens), np.concatenate(starts) if starts else None


def expected_text(tokenizer, documents, before=(), after=(0,)):
    encoder = Tokenizer.from_file(str(tokenizer))
    tokens, starts = [], []
    for text in documents:
        starts.append(len(tokens))
        tokens += [*before, *encoder.encode(text, add_special_tokens=False).ids, *after]
    return tokens, starts


def same_folders(a, b):
    names = sorted(p.name for p in a.iterdir())
    assert names == sorted(p.name for p in b.iterdir())
    assert filecmp.cmpfiles(a, b, names, shallow=False)[0] == names
