"""Writes one folder of token shards: HDF5 files, then the manifest that lists them.

A run that was killed at any moment goes on where its last finished shard ended: a shard is written
under another name, synced and renamed, carries the place in the input that follows it, and the
manifest comes last. prepare.json holds what decides the shards' bytes, so that shards of different
input or options never mix.
"""

import fcntl
import io
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import xxhash

from jiboia_data.errors import DataError, UsageError

FORMAT = "jiboia-token-shards"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
RECIPE = "prepare.json"
INPUT_LISTING = "input_listing"  # key of the recipe: a hash that stands for the input's files
CHUNK_TOKENS = 32768  # 64 KiB of uint16: a row costs one small read, the chunk index stays short
BLOCK_TOKENS = 1 << 20  # written to HDF5 at a time


@dataclass(frozen=True)
class Unit:
    """One document of a text, or one row of tokens that are already cut.

    Units are numbered from 0 in the order of the input; `where` names it in errors.
    """

    number: int
    where: str
    tokens: np.ndarray
    document_starts: np.ndarray  # offsets within tokens
    source_bytes: int = 0


@dataclass(frozen=True)
class FolderSpec:
    """What all shards of a folder share. row_length None means a stream."""

    vocab_size: int
    row_length: int | None
    shard_tokens: int
    compression: int = 0
    special_ids: dict = field(default_factory=dict)  # {"bos_token_id": 1, ...}
    tokenizer_files: tuple = ()
    has_document_starts: bool = True
    has_source_bytes: bool = True
    recipe: dict = field(default_factory=dict)  # what decides the bytes of the shards

    @property
    def dtype(self):
        return np.dtype("<u2") if self.vocab_size <= 1 << 16 else np.dtype("<u4")


def hash_bytes(data):
    """xxh3-64, as 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(data)


def hash_file(path):
    """The same of a file."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def json_bytes(value):
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def check_range(where, tokens, vocab_size, first=0):
    """That ids are below vocab_size; `first` is the position of the first."""
    bad = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    if len(bad):
        raise DataError(
            f"{where}: token {tokens.flat[bad[0]]} at position {first + bad[0]} is outside the "
            f"vocabulary of {vocab_size}"
        )


def check_tokens(path, tokens, vocab_size):
    """That an HDF5 dataset of integers holds ids below vocab_size, some MiB at a time."""
    width = tokens.size // max(1, len(tokens))
    rows = max(1, BLOCK_TOKENS // max(1, width))
    for begin in range(0, len(tokens), rows):
        check_range(path, tokens[begin : begin + rows], vocab_size, begin * width)


def write_atomically(path, data):
    """Under another name, synced, renamed, and the name made durable."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # that of a full disk names no file
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(temporary)) from error
    os.rename(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def locked(folder):
    """Holds a folder for this process alone. The lock is on the folder itself, so no file of it is
    left, and the kernel ends it with the process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{folder}: another prepare_data.py is at work in it; let it finish, or choose "
                "another folder"
            ) from error
        except OSError as error:
            raise OSError(error.errno, f"cannot lock: {error.strerror}", str(folder)) from error
        yield
    finally:
        os.close(descriptor)


class OpenShard:
    """One shard that is being filled, in memory: HDF5 does not survive a full disk."""

    def __init__(self, spec):
        self.spec = spec
        self.tokens = 0
        self.source_bytes = 0
        self._starts = []
        self._blocks = []
        self._buffered = 0
        self._image = io.BytesIO()
        self._file = h5py.File(self._image, "w")
        tail = () if spec.row_length is None else (spec.row_length,)
        self._width = spec.row_length or 1
        self._dataset = self._create("tokens", tail, spec.dtype, CHUNK_TOKENS // self._width)

    def _create(self, name, tail, dtype, chunk):
        level = self.spec.compression
        return self._file.create_dataset(
            name,
            shape=(0, *tail),
            maxshape=(None, *tail),
            chunks=(max(1, chunk), *tail),
            dtype=dtype,
            fletcher32=True,
            shuffle=level > 0,
            compression="gzip" if level > 0 else None,
            compression_opts=level if level > 0 else None,
        )

    def append(self, tokens, document_starts, source_bytes):
        self._starts.append(document_starts + self.tokens)
        self._blocks.append(tokens)
        self._buffered += len(tokens)
        self.tokens += len(tokens)
        self.source_bytes += source_bytes
        if self._buffered >= BLOCK_TOKENS:
            self._flush()

    def _flush(self):
        """Writes whole rows; what is left of a row stays in the buffer."""
        if not self._blocks:
            return
        block = np.concatenate(self._blocks)
        whole = len(block) // self._width * self._width
        rows = block[:whole].reshape((-1,) + self._dataset.shape[1:]).astype(self.spec.dtype)
        begin = self._dataset.shape[0]
        self._dataset.resize(begin + len(rows), axis=0)
        self._dataset[begin:] = rows
        self._blocks = [block[whole:]]
        self._buffered = len(block) - whole

    def commit(self, path, next_unit, next_offset):
        """Finishes the shard and writes it to `path`. Returns how many tokens were dropped because
        they did not fill a row."""
        self._flush()
        dropped = self._buffered
        kept = self.tokens - dropped
        starts = np.concatenate(self._starts) if self._starts else np.empty(0, np.int64)
        starts = starts[starts < kept]
        if self.spec.has_document_starts:
            dataset = self._create("document_starts", (), np.dtype("<i8"), CHUNK_TOKENS // 4)
            dataset.resize(len(starts), axis=0)
            dataset[:] = starts
        attributes = {
            "format_version": FORMAT_VERSION,
            "vocab_size": self.spec.vocab_size,
            "tokens": kept,
            # Of the dropped tokens' text only the proportion is known.
            "source_bytes": self.source_bytes * kept // max(1, self.tokens),
            "documents": len(starts),
            "next_unit": next_unit,
            "next_offset": next_offset,
            **self.spec.special_ids,
        }
        if not self.spec.has_source_bytes:
            del attributes["source_bytes"]
        if not self.spec.has_document_starts:
            del attributes["documents"]
        for name, value in attributes.items():
            self._file.attrs.create(name, value, dtype="<i8")
        self._file.close()
        write_atomically(path, self._image.getbuffer())
        return dropped


class ShardFolder:
    """One folder of shards, new or begun by an earlier run with the same recipe; used within
    `with folder.opened()`."""

    def __init__(self, path, spec):
        self.path = Path(path)
        width = spec.row_length or 1
        if spec.shard_tokens < width:
            raise UsageError(
                f"--shard-tokens is {spec.shard_tokens}, one row has {width} tokens: a shard holds "
                "at least one row"
            )
        self.spec = spec
        self.shard_tokens = spec.shard_tokens // width * width
        self.next_unit = 0  # units before this one are in finished shards
        self.next_offset = 0  # and so many tokens of this one
        self.dropped_tokens = 0
        self.finished = False
        self._shards = []
        self._open = None

    @contextmanager
    def opened(self):
        """Locks the folder, and takes up what an earlier run left in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            for leftover in self.path.glob("*.tmp"):
                leftover.unlink()
            self._check_recipe()
            self.finished = (self.path / MANIFEST).exists()
            if not self.finished:
                self._find_shards()
            yield self

    def _check_recipe(self):
        path = self.path / RECIPE
        recipe = json.loads(json.dumps(self.spec.recipe))
        if not any(self.path.glob("*.h5")) and not (self.path / MANIFEST).exists():
            write_atomically(path, json_bytes(recipe))  # nothing yet hangs on an earlier one
        elif path.exists():
            begun = json.loads(path.read_text(encoding="utf-8"))
            if begun != recipe:
                self._refuse(begun, recipe)
        else:
            raise UsageError(f"{self.path} holds shards that this program did not write")

    def _refuse(self, begun, recipe):
        """Says why what was begun by one recipe is not gone on with by another."""
        if INPUT_LISTING not in begun:
            reason = (
                f"was made by an earlier version, whose {RECIPE} cannot tell whether the input "
                "is still the same"
            )
        else:
            differing = sorted(k for k in {*begun, *recipe} if begun.get(k) != recipe.get(k))
            changes = ", ".join(f"{k}: {begun.get(k)} then, {recipe.get(k)} now" for k in differing)
            reason = f"was begun with other inputs or options ({changes})"
            if INPUT_LISTING in differing:
                reason += (
                    f"; {INPUT_LISTING} stands for the names, sizes and modification times of the "
                    "input's files in their order, so that a touched or copied file counts as "
                    "another"
                )
        advice = "choose another --output, or remove the folder to begin anew"
        if (self.path / MANIFEST).exists():
            advice += "; it is finished, and training can use it as it is"
        raise UsageError(f"{self.path} {reason}; {advice}")

    def _shard_path(self, index):
        return self.path / f"shard_{index:05d}.h5"

    def _find_shards(self):
        found = sorted(self.path.glob("*.h5"))
        expected = [self._shard_path(index) for index in range(len(found))]
        if found != expected:
            wrong = next(path for path, wanted in zip(found, expected) if path != wanted)
            raise DataError(f"{wrong}: shards before this one are missing; remove the folder")
        self._shards = found
        if found:
            try:
                with h5py.File(found[-1], "r") as file:
                    self.next_unit = int(file.attrs["next_unit"])
                    self.next_offset = int(file.attrs["next_offset"])
            except (OSError, KeyError) as error:
                raise DataError(f"{found[-1]}: not a finished shard ({error})") from error

    def wants(self, number):
        """Whether any token of this unit is still to be written."""
        return not self.finished and number >= self.next_unit

    def add(self, unit):
        if not self.wants(unit.number):
            return
        check_range(unit.where, unit.tokens, self.spec.vocab_size)
        total = len(unit.tokens)
        begin = self.next_offset if unit.number == self.next_unit else 0
        while begin < total:
            if self._open is None:
                self._open = OpenShard(self.spec)
            end = min(total, begin + self.shard_tokens - self._open.tokens)
            starts = unit.document_starts
            starts = starts[(starts >= begin) & (starts < end)] - begin
            # A document that two shards share gives each its proportion of the bytes.
            part = unit.source_bytes * end // total - unit.source_bytes * begin // total
            self._open.append(unit.tokens[begin:end], starts, part)
            begin = end
            if self._open.tokens == self.shard_tokens:
                self._commit(*((unit.number, end) if end < total else (unit.number + 1, 0)))

    def _commit(self, next_unit, next_offset):
        path = self._shard_path(len(self._shards))
        self.dropped_tokens = self._open.commit(path, next_unit, next_offset)
        self._shards.append(path)
        self._open = None

    def finish(self, units):
        """Writes the last shard and the manifest; `units` is the number of units of the input."""
        if self.finished:
            return
        if self._open is not None:
            if self._open.tokens < (self.spec.row_length or 1):
                self.dropped_tokens = self._open.tokens
                self._open = None
            else:
                self._commit(units, 0)
        if not self._shards:
            raise DataError(
                f"{self.path}: the input gave no {'row' if self.spec.row_length else 'token'}"
            )
        copies = []
        for source in self.spec.tokenizer_files:
            copies.append(self.path / source.name)
            write_atomically(copies[-1], source.read_bytes())
        write_manifest(self.path, self._shards, self.spec, copies)
        self.finished = True

    def report(self):
        """One line of counts."""
        manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        text = f"{self.path}: {manifest['tokens']:,} tokens in {len(manifest['files'])} shards"
        if self.spec.row_length:
            text += (
                f", {manifest['tokens'] // self.spec.row_length:,} rows of {self.spec.row_length}"
            )
        if self.spec.has_document_starts:
            text += f", {sum(file['documents'] for file in manifest['files']):,} documents"
        if self.spec.has_source_bytes:
            text += f", {manifest['source_bytes']:,} bytes of text"
        if self.dropped_tokens:
            text += (
                f"; {self.dropped_tokens:,} tokens at the end did not fill a row and were dropped"
            )
        return text


def write_manifest(folder, shards, spec, tokenizer_files):
    """Describes finished shards, in this order, in folder/manifest.json."""
    files = []
    for path in shards:
        with h5py.File(path, "r") as file:
            entry = {
                "name": path.name,
                "bytes": path.stat().st_size,
                "xxh3": hash_file(path),
                "tokens": int(file["tokens"].size),
            }
            if spec.row_length is not None:
                entry["rows"] = int(file["tokens"].shape[0])
            if spec.has_document_starts:
                entry["documents"] = int(file["document_starts"].size)
            if spec.has_source_bytes:
                entry["source_bytes"] = int(file.attrs["source_bytes"])
        files.append(entry)
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "layout": "stream" if spec.row_length is None else "rows",
        "vocab_size": spec.vocab_size,
        "tokens": sum(entry["tokens"] for entry in files),
        **spec.special_ids,
    }
    if spec.row_length is not None:
        manifest["row_length"] = spec.row_length
    if spec.has_source_bytes:
        manifest["source_bytes"] = sum(entry["source_bytes"] for entry in files)
    if tokenizer_files:
        manifest["tokenizer"] = "xxh3:" + hash_file(tokenizer_files[0])
        manifest["tokenizer_files"] = [
            {"name": path.name, "bytes": path.stat().st_size, "xxh3": hash_file(path)}
            for path in tokenizer_files
        ]
    manifest["files"] = files
    write_atomically(folder / MANIFEST, json_bytes(manifest))
