"""Rows of token ids that others have already cut: Parquet columns and open_lm's tar files."""

import gzip
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from jiboia_data.errors import DataError, UsageError
from jiboia_data.shards import Unit
from jiboia_data.text import decode, find_files, parse_json

NO_STARTS = np.empty(0, np.int64)
SECONDARY_COLUMNS = ("attention_mask", "labels")


def document_starts(tokens, rule, special_ids):
    """Offsets at which documents begin: `at-bos` at each bos token, `after-eos` behind each eos
    token, `none` nowhere."""
    if rule == "at-bos":
        return np.flatnonzero(tokens == special_ids["bos_token_id"])
    if rule == "after-eos":
        starts = 1 + np.flatnonzero(tokens == special_ids["eos_token_id"])
        return starts[starts < len(tokens)]
    return NO_STARTS


def open_parquet(path, column):
    try:
        parquet = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet: {error}") from error
    names = parquet.schema_arrow.names
    if column not in names:
        raise DataError(f"{path}: no column {column}; there are {', '.join(names)}")
    for name in (column, *SECONDARY_COLUMNS):
        if names.count(name) > 1:
            raise DataError(f"{path}: {names.count(name)} columns are named {name}")
    return parquet


def check_is_integer_list(path, name, kind):
    lists = pyarrow.types
    is_list = lists.is_list(kind) or lists.is_large_list(kind) or lists.is_fixed_size_list(kind)
    if not is_list or not lists.is_integer(kind.value_type):
        raise DataError(f"{path}: column {name} is {kind}, expected a list of integers")


def parquet_row_length(files, column):
    """Length of the first row."""
    for path in files:
        parquet = open_parquet(path, column)
        check_is_integer_list(path, column, parquet.schema_arrow.field(column).type)
        try:
            for batch in parquet.iter_batches(1, columns=[column]):
                if len(batch):
                    length = batch.column(column).value_lengths()[0].as_py()
                    if not length:
                        raise DataError(f"{path}: column {column}, row 0 has no tokens")
                    return length
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: {error}") from error
    raise DataError(f"{files[0]}: no rows in the Parquet files")


def parquet_rows(files, column, row_length, first):
    """Yields (number, where, tokens) of the rows from number `first` on, a row group at a time.
    attention_mask must be all ones and labels equal to the ids: then they carry nothing."""
    number = 0
    for path in files:
        parquet = open_parquet(path, column)
        names = parquet.schema_arrow.names
        columns = [column] + [c for c in SECONDARY_COLUMNS if c in names]
        row_in_file = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if number + rows <= first:
                number += rows
                row_in_file += rows
                continue
            try:
                for batch in parquet.iter_batches(512, row_groups=[group], columns=columns):
                    block = parquet_block(path, row_in_file, batch, column, row_length)
                    for tokens in block:
                        if number >= first:
                            yield number, f"{path} row {row_in_file}", tokens
                        number += 1
                        row_in_file += 1
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{path}: row group {group}: {error}") from error


def parquet_block(path, first_row, batch, column, row_length):
    """The ids of a batch, (rows, row_length), after checking the columns against each other."""
    blocks = {}
    for name in batch.schema.names:
        values = batch.column(name)
        where = f"{path}: column {name}"
        check_is_integer_list(path, name, values.type)
        if values.null_count:
            raise DataError(f"{where}: {values.null_count} missing rows after row {first_row}")
        lengths = values.value_lengths().to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(lengths != row_length)
        if len(bad):
            raise DataError(
                f"{where}, row {first_row + bad[0]} has {lengths[bad[0]]} tokens, "
                f"expected {row_length}"
            )
        flat = values.flatten()
        if flat.null_count:
            raise DataError(f"{where}: {flat.null_count} missing values after row {first_row}")
        blocks[name] = flat.to_numpy(zero_copy_only=False).astype(np.int64).reshape(-1, row_length)
    ids = blocks[column]
    if "labels" in blocks:
        check_rows(path, first_row, "labels differ from " + column, blocks["labels"] == ids)
    if "attention_mask" in blocks:
        check_rows(path, first_row, "attention_mask is not all ones", blocks["attention_mask"] == 1)
    return ids


def check_rows(path, first_row, problem, equal):
    bad = np.argwhere(~equal)
    if len(bad):
        row, position = bad[0]
        raise DataError(f"{path}: {problem} in row {first_row + row}, position {position}")


class OpenLmRows:
    """Rows of webdataset tar files: members *.json.gz or *.json, each a JSON list of ids."""

    def __init__(self, inputs, row_length, vocab_size):
        self.row_length, self.vocab_size = row_length, vocab_size
        self.expected = {}  # sequences of a tar, where a manifest.jsonl says so
        self.too_short = 0
        self.files = []
        for given in map(Path, inputs):
            manifest = given / "manifest.jsonl" if given.is_dir() else given
            if manifest.name.endswith(".jsonl") and manifest.is_file():
                self.files += self._read_manifest(manifest)
            else:
                self.files += find_files([given], (".tar",))
        seen = set()
        for path in self.files:
            if path.resolve() in seen:
                raise UsageError(f"{path} is named twice; its rows would come twice")
            seen.add(path.resolve())

    def _read_manifest(self, manifest):
        files, lines = [], {}
        for number, line in enumerate(decode(manifest.read_bytes(), manifest).splitlines(), 1):
            entry = parse_json(line, f"{manifest}:{number}")
            try:
                name, sequences = str(entry["shard"]), int(entry["num_sequences"])
            except (ValueError, OverflowError, KeyError, TypeError) as error:
                raise DataError(
                    f'{manifest}:{number}: expected "shard" and "num_sequences"'
                ) from error
            path = manifest.parent / (name if name.endswith(".tar") else name + ".tar")
            if not path.is_file():
                raise DataError(f"{manifest}:{number}: {path} is missing")
            earlier = lines.setdefault(path.resolve(), number)
            if earlier != number:
                raise DataError(f"{manifest}:{number}: {path} is listed in line {earlier} already")
            self.expected[path] = sequences
            files.append(path)
        return files

    def read(self, first):
        """Yields (number, where, tokens) of the rows from number `first` on. Rows that are shorter
        than row_length are left out and counted, as open_lm does; negative ids count from the end
        of the vocabulary."""
        number = 0
        for path in self.files:
            members = 0
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        tar.members = []  # keeps memory bounded
                        if not member.isfile():
                            continue
                        if number >= first:
                            where = f"{path}: {member.name}"
                            tokens = self._parse(tar.extractfile(member).read(), where)
                            if tokens is not None:
                                yield number, where, tokens
                        number += 1
                        members += 1
                    # The tarfile module takes a header that is cut off for the end.
                    if path.stat().st_size < tar.offset + tarfile.BLOCKSIZE:
                        raise DataError(f"{path}: truncated after {members} sequences")
            except (tarfile.TarError, EOFError, OSError) as error:
                raise DataError(f"{path}: {error}") from error
            if members != self.expected.get(path, members):
                raise DataError(
                    f"{path}: {members} sequences, the manifest says {self.expected[path]}"
                )

    def _parse(self, data, where):
        if not where.endswith((".json", ".json.gz")):
            raise DataError(f"{where}: expected members named *.json.gz or *.json")
        try:
            ids = json.loads(gzip.decompress(data) if where.endswith(".gz") else data)
        except (ValueError, RecursionError, EOFError, OSError, zlib.error) as error:
            raise DataError(f"{where}: not a JSON list of ids: {error}") from error
        if not isinstance(ids, list) or any(type(token) is not int for token in ids):
            raise DataError(f"{where}: not a JSON list of ids")
        if len(ids) > self.row_length:
            raise DataError(f"{where}: {len(ids)} tokens, more than --row-length {self.row_length}")
        if len(ids) < self.row_length:
            self.too_short += 1
            return None
        try:
            tokens = np.array(ids, np.int64)
        except OverflowError as error:
            raise DataError(f"{where}: a token does not fit in 64 bits") from error
        negative = tokens < 0
        tokens[negative] %= self.vocab_size
        return tokens


def to_units(rows, rule, special_ids):
    for number, where, tokens in rows:
        yield Unit(number, where, tokens, document_starts(tokens, rule, special_ids))
