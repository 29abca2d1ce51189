"""Documents from text files and JSON lines, and their tokens."""

import codecs
import gzip
import json
import re
import zlib
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from jiboia_data.errors import DataError, UsageError
from jiboia_data.shards import Unit

SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
BATCH_BYTES = 1 << 22  # of text that the tokenizer gets at once
BATCH_DOCUMENTS = 1000


def find_files(inputs, suffixes):
    """The files that `inputs` name: files as given, folders walked, each sorted by path."""
    files = []
    for given in map(Path, inputs):
        if given.is_dir():
            everything = sorted(p for p in given.rglob("*") if p.is_file())
            found = [p for p in everything if p.name.endswith(suffixes)]
            if not found:
                raise DataError(f"{given}: no {', '.join('*' + s for s in suffixes)} file in it")
            if len(found) < len(everything):
                left_out = next(p for p in everything if not p.name.endswith(suffixes))
                print(f"{given}: left out {len(everything) - len(found)} file(s) that are no "
                      f"{', '.join('*' + s for s in suffixes)}, such as {left_out.name}")
            files += found
        elif given.is_file():
            files.append(given)
        else:
            raise DataError(f"{given}: no such file or folder")
    seen = set()
    for path in files:
        if path in seen:
            raise UsageError(f"{path} is named twice")
        seen.add(path)
    return files


def open_text(path):
    opener = gzip.open if path.name.endswith(".gz") else open
    return opener(path, "rb")


def decode(data, where):
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start} ({error.reason})") from error


def parse_json(text, where):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    except (ValueError, RecursionError) as error:  # thousands of digits, deep nesting
        raise DataError(f"{where}: JSON beyond what can be read: {error}") from error


def read_documents(files, field, split):
    """Yields (where, text) of every document. `split` says what a document of a text file is: the
    whole `file`, a `line`, or a `paragraph` (lines up to an empty one). A byte order mark at a
    file's start is no part of its text."""
    for path in files:
        try:
            with open_text(path) as lines:
                if lines.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                    lines.seek(0)
                if ".jsonl" in path.suffixes:
                    yield from read_json_lines(path, lines, field)
                elif split == "file":
                    yield str(path), decode(lines.read(), path)
                else:
                    yield from read_pieces(path, lines, split)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}: {error}") from error


def read_json_lines(path, lines, field):
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        document = parse_json(decode(line, where), where)
        text = document.get(field) if isinstance(document, dict) else None
        if not isinstance(text, str):
            raise DataError(f'{where}: no text in field "{field}" (--field names another one)')
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f'{where}: field "{field}" holds half a surrogate pair') from error
        yield where, text


def read_pieces(path, lines, split):
    piece, begin = [], 1
    for number, line in enumerate(lines, 1):
        ends = split == "line" or not line.strip()
        if line.strip():
            if not piece:
                begin = number
            piece.append(line)
        if ends and piece:
            yield f"{path}:{begin}", decode(b"".join(piece), f"{path}:{begin}").rstrip("\r\n")
            piece = []
    if piece:
        yield f"{path}:{begin}", decode(b"".join(piece), f"{path}:{begin}").rstrip("\r\n")


class TextEncoder:
    """Tokenizer plus separators: the tokens of one document are [bos] text [eos]."""

    def __init__(self, path, before, after):
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{path}: no such tokenizer file")
        try:
            self.tokenizer = Tokenizer.from_file(str(self.path))
        except Exception as error:  # the package raises nothing more precise
            raise DataError(f"{path}: not a tokenizer.json: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.before, self.after = before, after

    def encode(self, batch):
        """Units of a list of (number, where, text)."""
        before = [] if self.before is None else [self.before]
        after = [] if self.after is None else [self.after]
        texts = [text for _, _, text in batch]
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for (number, where, text), encoding in zip(batch, encodings):
            tokens = np.array(before + encoding.ids + after, np.int64)
            yield Unit(number, where, tokens, np.zeros(1, np.int64), len(text.encode("utf-8")))

    def encode_all(self, documents):
        """Units of an iterator of (number, where, text), a bounded batch at a time."""
        batch, size = [], 0
        for document in documents:
            batch.append(document)
            size += len(document[2])
            if size >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
                yield from self.encode(batch)
                batch, size = [], 0
        if batch:
            yield from self.encode(batch)


def special_ids(tokenizer_path, given):
    """bos, eos and pad ids: from the options, where a number is an id and all else a token's text,
    or else from the texts in the tokenizer_config.json beside the tokenizer."""
    settings = read_tokenizer_config(Path(tokenizer_path).with_name("tokenizer_config.json"))
    vocabulary = Tokenizer.from_file(str(tokenizer_path)).get_vocab(True)
    vocab_size = vocabulary_size(tokenizer_path)
    ids = {}
    for role, option in given.items():
        # Digits are ids even where a token has the same digits for its text, as each digit has.
        if option is not None and re.fullmatch("-?[0-9]+", option):
            number = int(option)
            if not 0 <= number < vocab_size:
                raise UsageError(
                    f"--{role}-token {number} is outside the vocabulary of {vocab_size}"
                )
            ids[f"{role}_token_id"] = number
            continue
        token = option if option is not None else settings.get(f"{role}_token")
        if token is None:
            continue
        if token not in vocabulary:
            raise DataError(f"{tokenizer_path}: has no token {token!r} (the {role} token)")
        ids[f"{role}_token_id"] = vocabulary[token]
    return ids


def read_tokenizer_config(path):
    """The texts of the bos, eos and pad tokens, {"eos_token": "</s>", ...}, of those it names."""
    if not path.is_file():
        return {}
    settings = parse_json(decode(path.read_bytes(), path), path)
    if not isinstance(settings, dict):
        raise DataError(f"{path}: expected a JSON object, got {settings!r:.60}")
    texts = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = settings.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(text, str):
            raise DataError(
                f'{path}: {name} is {token!r:.60}, expected its text, an object with the text as '
                '"content", or null'
            )
        texts[name] = text
    return texts


def vocabulary_size(tokenizer_path):
    """One more than the largest id."""
    return 1 + max(Tokenizer.from_file(str(tokenizer_path)).get_vocab(True).values())
