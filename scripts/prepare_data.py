#!/usr/bin/env python3
"""Turns text or token ids into folders of token shards, the format that the trainer reads.

One folder is one split; data/FORMAT.md describes it. Input is streamed, so memory stays small
whatever its size, and the same input and options give the same bytes. A run that was stopped, even
by kill -9, is started again with the same command and keeps its finished shards; it refuses when
options or input files (their names, sizes, modification times or order) have changed. Every token
is checked against the vocabulary.

Exit codes: 0 done, 2 usage, 3 data, 7 disk.
"""

import argparse
import itertools
import json
import sys
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from jiboia_data.errors import DataError, PrepareError, UsageError  # noqa: E402

try:
    from jiboia_data.shards import (
        FolderSpec,
        INPUT_LISTING,
        MANIFEST,
        ShardFolder,
        hash_bytes,
        hash_file,
        locked,
        write_manifest,
    )
except ModuleNotFoundError as missing:
    sys.exit(
        f"prepare_data.py: {missing}. It runs in an environment of its own:\n"
        "    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-data.txt\n"
        "    .venv/bin/python scripts/prepare_data.py --help"
    )

DISK_EXIT_CODE = 7
MAX_VOCAB_SIZE = 1 << 31
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def add_common_options(command):
    command.add_argument("inputs", nargs="+", metavar="INPUT", help="files, or folders to look in")
    command.add_argument(
        "--output", "-o", required=True, type=Path, metavar="DIR", help="folder to write"
    )
    command.add_argument(
        "--shard-tokens",
        type=int,
        default=1 << 27,
        metavar="N",
        help="tokens of one shard file, which is held in memory until it is full (default: "
        "%(default)s, 256 MiB of uint16)",
    )
    command.add_argument(
        "--compression",
        type=int,
        default=0,
        choices=range(10),
        metavar="LEVEL",
        help="deflate level of the shards, 0 to 9 (default: 0, none: fastest to read)",
    )


def add_row_options(command):
    command.add_argument(
        "--vocab-size", type=int, required=True, metavar="N", help="ids are below this"
    )
    command.add_argument("--bos-token-id", type=int, metavar="ID", help="recorded in the manifest")
    command.add_argument("--eos-token-id", type=int, metavar="ID", help="recorded in the manifest")
    command.add_argument("--pad-token-id", type=int, metavar="ID", help="recorded in the manifest")
    command.add_argument(
        "--document-starts",
        choices=("none", "at-bos", "after-eos"),
        default="none",
        help="how documents inside a row are found, for training that resets its state at them "
        "(default: none)",
    )
    command.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="the tokenizer.json that made the ids; it and the tokenizer_config.json beside it are "
        "copied into the output, so that checkpoints carry them",
    )


def make_parser():
    parser = argparse.ArgumentParser(
        prog="prepare_data.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="text|parquet|openlm|manifest"
    )

    text = commands.add_parser(
        "text",
        help="text files or JSON lines, tokenized with any tokenizer.json",
        description="Reads *.txt and *.jsonl (also .gz), UTF-8, tokenizes every document, "
        "separates documents, and writes a stream (or rows, with --row-length). Documents without "
        "text are left out. With --validation-fraction the output gets two folders, train and "
        "validation.",
    )
    add_common_options(text)
    text.add_argument(
        "--tokenizer", required=True, type=Path, metavar="FILE", help="a tokenizer.json"
    )
    text.add_argument(
        "--field", default="text", help="the JSON field with the text (default: text)"
    )
    text.add_argument(
        "--documents",
        choices=("file", "paragraph", "line"),
        default="file",
        help="what one document of a *.txt file is: the file, the lines up to an empty one, or a "
        "line (default: file; it is held in memory whole)",
    )
    text.add_argument(
        "--separator",
        choices=("eos-after", "bos-before", "both", "none"),
        default="eos-after",
        help="which token marks documents (default: eos-after)",
    )
    for role in ("bos", "eos", "pad"):
        text.add_argument(
            f"--{role}-token",
            metavar="TOKEN",
            help=f"the {role} token: a number is its id, all else its text (default: from "
            "tokenizer_config.json beside the tokenizer)",
        )
    text.add_argument(
        "--row-length",
        type=int,
        metavar="N",
        help="write rows of N tokens (seq_len, or seq_len + 1) instead of a stream; a last part of "
        "a row is dropped",
    )
    text.add_argument(
        "--validation-fraction",
        type=float,
        default=0.0,
        metavar="F",
        help="share of the documents for validation, chosen by a hash of their text, so that equal "
        "documents stay together (default: 0, all for training, in DIR itself)",
    )

    parquet = commands.add_parser(
        "parquet",
        help="Parquet files with a column of ids",
        description="Reads *.parquet with a list column of ids, all rows equally long, for example "
        "Pt-Corpus-Instruct-tokenized-large. Where columns attention_mask and labels exist, the "
        "mask must be all ones and the labels equal to the ids; both are then dropped.",
    )
    add_common_options(parquet)
    add_row_options(parquet)
    parquet.add_argument(
        "--column", default="input_ids", help="the column of ids (default: input_ids)"
    )

    openlm = commands.add_parser(
        "openlm",
        help="open_lm's webdataset tars of JSON lists",
        description="Reads *.tar whose members are JSON lists of ids (*.json.gz or *.json). A "
        "manifest.jsonl, given or found in a folder, sets the order of the tars and their counts "
        "are checked. Negative ids are taken modulo the vocabulary size; shorter rows are left out "
        "and counted; both as open_lm does.",
    )
    add_common_options(openlm)
    add_row_options(openlm)
    openlm.add_argument(
        "--row-length",
        type=int,
        default=2049,
        metavar="N",
        help="tokens of a row (default: %(default)s)",
    )

    manifest = commands.add_parser(
        "manifest",
        help="describe HDF5 shards that another program wrote",
        description="Writes manifest.json for a folder of *.h5 files, in the order of their names, "
        "each with a dataset `tokens` (and `document_starts` in all or none). They are checked as "
        "the trainer checks them.",
    )
    manifest.add_argument("folder", type=Path, metavar="DIR")
    manifest.add_argument(
        "--vocab-size", type=int, required=True, metavar="N", help="ids are below this"
    )
    return parser


def tokenizer_files(tokenizer):
    if tokenizer is None:
        return ()
    if not tokenizer.is_file():
        raise DataError(f"{tokenizer}: no such tokenizer file")
    if tokenizer.name != "tokenizer.json":
        raise UsageError(
            f"{tokenizer}: the file must be named tokenizer.json, as checkpoints carry it"
        )
    config = tokenizer.with_name("tokenizer_config.json")
    return (tokenizer, config) if config.is_file() else (tokenizer,)


def list_files(inputs, files):
    """[name, bytes, time of its last change] of the input files, in order. Names begin at the
    folder that was given, so that a folder may be called by another path at a restart."""
    folders = [folder for folder in map(Path, inputs) if folder.is_dir()]
    listing = []
    for path in files:
        folder = next((folder for folder in folders if path.is_relative_to(folder)), path.parent)
        status = path.stat()
        listing.append([str(path.relative_to(folder)), status.st_size, status.st_mtime_ns])
    return listing


def make_recipe(options, files, **facts):
    """What decides the bytes of the shards: a restart with another recipe is refused."""
    listing = list_files(options.inputs, files)
    return {
        "command": options.command,
        "input_files": len(listing),
        "input_bytes": sum(size for _, size, _ in listing),
        INPUT_LISTING: hash_bytes(json.dumps(listing).encode()),
        "shard_tokens": options.shard_tokens,
        "compression": options.compression,
        **facts,
    }


def check_options(options):
    """What the numbers may be, before anything is read."""
    for name in ("shard_tokens", "row_length", "vocab_size"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}, expected at least 1")
    if getattr(options, "vocab_size", 1) > MAX_VOCAB_SIZE:
        raise UsageError(
            f"--vocab-size is {options.vocab_size}, expected at most 2^31 = {MAX_VOCAB_SIZE}"
        )
    for name in SPECIAL_IDS:
        value = getattr(options, name, None)
        if value is not None and not 0 <= value < options.vocab_size:
            raise UsageError(
                f"--{name.replace('_', '-')} {value} is outside the vocabulary of "
                f"{options.vocab_size}"
            )
    rule = getattr(options, "document_starts", "none")
    for role, needed in (("bos", rule == "at-bos"), ("eos", rule == "after-eos")):
        if needed and getattr(options, f"{role}_token_id") is None:
            raise UsageError(f"--document-starts {rule} needs --{role}-token-id")
    fraction = getattr(options, "validation_fraction", 0)
    if not 0 <= fraction < 1:
        raise UsageError(f"--validation-fraction is {fraction}, expected 0 to below 1")


def prepare_text(options):
    from jiboia_data import text

    copies = tokenizer_files(options.tokenizer)
    files = text.find_files(options.inputs, text.SUFFIXES)
    encoder = text.TextEncoder(options.tokenizer, None, None)
    given = {role: getattr(options, f"{role}_token") for role in ("bos", "eos", "pad")}
    special_ids = text.special_ids(options.tokenizer, given)
    for role, used in (("bos", ("bos-before", "both")), ("eos", ("eos-after", "both"))):
        if options.separator in used and f"{role}_token_id" not in special_ids:
            raise UsageError(
                f"--separator {options.separator} needs --{role}-token, since there is no "
                f"tokenizer_config.json that names it beside {options.tokenizer}"
            )
    if options.separator in ("bos-before", "both"):
        encoder.before = special_ids["bos_token_id"]
    if options.separator in ("eos-after", "both"):
        encoder.after = special_ids["eos_token_id"]

    recipe = make_recipe(
        options,
        files,
        tokenizer=hash_file(options.tokenizer),
        field=options.field,
        documents=options.documents,
        separator=options.separator,
        special_ids=special_ids,
        row_length=options.row_length,
        validation_fraction=options.validation_fraction,
    )
    spec = FolderSpec(
        vocab_size=text.vocabulary_size(options.tokenizer),
        row_length=options.row_length,
        shard_tokens=options.shard_tokens,
        compression=options.compression,
        special_ids=special_ids,
        tokenizer_files=copies,
        recipe=recipe,
    )
    if options.validation_fraction > 0:
        splits = [ShardFolder(options.output / name, spec) for name in ("train", "validation")]
    else:
        splits = [ShardFolder(options.output, spec)]
    with ExitStack() as stack:
        for split in splits:
            stack.enter_context(split.opened())
        write_documents(splits, files, encoder, options)


def write_documents(splits, files, encoder, options):
    import xxhash

    from jiboia_data import text

    threshold = int(options.validation_fraction * 2.0**64)
    counter = itertools.count()
    chosen = {}  # the split of each document that is being tokenized

    def documents():
        for where, document in text.read_documents(files, options.field, options.documents):
            if not document.strip():
                continue
            number = next(counter)
            is_validation = xxhash.xxh3_64_intdigest(document.encode("utf-8")) < threshold
            split = splits[1 if is_validation else 0]
            if split.wants(number):
                chosen[number] = split
                yield number, where, document

    if not all(split.finished for split in splits):
        for unit in encoder.encode_all(documents()):
            chosen.pop(unit.number).add(unit)
    finish(splits, next(counter))


def finish(splits, units):
    for split in splits:
        split.finish(units)
    for split in splits:
        print(split.report())


def row_spec(options, row_length, files, **facts):
    given = {name: getattr(options, name) for name in SPECIAL_IDS}
    special_ids = {name: value for name, value in given.items() if value is not None}
    rule = options.document_starts
    copies = tokenizer_files(options.tokenizer)
    return FolderSpec(
        vocab_size=options.vocab_size,
        row_length=row_length,
        shard_tokens=options.shard_tokens,
        compression=options.compression,
        special_ids=special_ids,
        tokenizer_files=copies,
        has_document_starts=rule != "none",
        has_source_bytes=False,
        recipe=make_recipe(
            options,
            files,
            tokenizer=hash_file(copies[0]) if copies else None,
            vocab_size=options.vocab_size,
            row_length=row_length,
            special_ids=special_ids,
            document_starts=rule,
            **facts,
        ),
    )


def write_rows(folder, rows, options):
    from jiboia_data.rows import to_units

    units = 0
    if not folder.finished:
        for unit in to_units(rows, options.document_starts, folder.spec.special_ids):
            folder.add(unit)
            units = unit.number + 1
    finish([folder], units)


def prepare_parquet(options):
    from jiboia_data import rows
    from jiboia_data.text import find_files

    files = find_files(options.inputs, (".parquet",))
    row_length = rows.parquet_row_length(files, options.column)
    spec = row_spec(options, row_length, files, column=options.column)
    with ShardFolder(options.output, spec).opened() as folder:
        left = rows.parquet_rows(files, options.column, row_length, folder.next_unit)
        write_rows(folder, left, options)


def prepare_openlm(options):
    from jiboia_data import rows

    source = rows.OpenLmRows(options.inputs, options.row_length, options.vocab_size)
    spec = row_spec(options, options.row_length, source.files)
    with ShardFolder(options.output, spec).opened() as folder:
        write_rows(folder, source.read(folder.next_unit), options)
    if source.too_short:
        print(f"{source.too_short:,} rows had fewer than {options.row_length} tokens; left out")


def prepare_manifest(options):
    if not options.folder.is_dir():
        raise DataError(f"{options.folder}: no such folder")
    with locked(options.folder):
        describe(options)


def describe(options):
    from jiboia_data.foreign import check_shard

    if (options.folder / MANIFEST).exists():
        raise UsageError(f"{options.folder / MANIFEST} is there already; remove it first")
    shards = sorted(options.folder.glob("*.h5"))
    if not shards:
        raise DataError(f"{options.folder}: no *.h5 file in it")
    shapes, contents = {}, {}
    for path in shards:
        shapes[path] = check_shard(path, options.vocab_size)
        twin = contents.setdefault(hash_file(path), path)
        if twin != path:
            raise DataError(f"{path}: has the contents of {twin}, whose tokens would come twice")
        if shapes[path] != shapes[shards[0]]:
            raise DataError(f"{path}: its row length or its datasets differ from {shards[0]}")
    row_length, has_starts = shapes[shards[0]]
    spec = FolderSpec(
        vocab_size=options.vocab_size,
        row_length=row_length,
        shard_tokens=0,
        has_document_starts=has_starts,
        has_source_bytes=False,
    )
    write_manifest(options.folder, shards, spec, [])
    print(f"{options.folder / MANIFEST}: {len(shards)} shards")


def main(arguments=None):
    options = make_parser().parse_args(arguments)
    commands = {
        "text": prepare_text,
        "parquet": prepare_parquet,
        "openlm": prepare_openlm,
        "manifest": prepare_manifest,
    }
    try:
        check_options(options)
        commands[options.command](options)
    except PrepareError as error:
        print(f"prepare_data.py: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"prepare_data.py: {error}", file=sys.stderr)
        return DISK_EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are not UTF-8
    sys.exit(main())
