"""Tests of scripts/prepare_data.py: parquet, open_lm's tar files, and shards made by others."""

import gzip
import io
import json
import os
import tarfile

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from prepared import Stopped, damaged_gzip, read_folder, run, same_folders, shards_module

# Parquet


def write_parquet(path, rows, row_group_size=2, **columns):
    ids = columns.pop("ids", lists(rows))
    table = pyarrow.table({columns.pop("name", "input_ids"): ids, **columns})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)


def lists(rows, kind=pyarrow.int32()):
    return pyarrow.array(rows, pyarrow.list_(kind))


ROWS = [[1, 5, 6, 1], [7, 8, 9, 10], [1, 1, 2, 3], [11, 12, 1, 13], [14, 15, 16, 17]]


def test_parquet(tmp_path, monkeypatch):
    masks, labels = lists([[1] * 4] * 5, pyarrow.int8()), lists(ROWS, pyarrow.int64())
    write_parquet(tmp_path / "a.parquet", ROWS, attention_mask=masks, labels=labels)
    write_parquet(tmp_path / "b.parquet", ROWS[:3][::-1])
    out = tmp_path / "out"
    arguments = ("parquet", tmp_path, "-o", out, "--vocab-size", 18, "--shard-tokens", 9)
    arguments += ("--document-starts", "at-bos", "--bos-token-id", 1)
    assert run(*arguments) == 0
    manifest, rows, starts = read_folder(out)
    wanted = ROWS + ROWS[:3][::-1]
    assert rows.tolist() == wanted
    assert starts.tolist() == np.flatnonzero(np.array(wanted).ravel() == 1).tolist()
    assert manifest["row_length"] == 4 and manifest["bos_token_id"] == 1
    assert [file["rows"] for file in manifest["files"]] == [2, 2, 2, 2]
    assert "source_bytes" not in manifest

    keep = tmp_path / "undisturbed"
    out.rename(keep)
    rename, calls = os.rename, []

    def stopping_rename(source, target):
        calls.append(target)
        if len(calls) == 4:
            raise Stopped
        rename(source, target)

    monkeypatch.setattr(shards_module.os, "rename", stopping_rename)
    with pytest.raises(Stopped):
        run(*arguments)
    monkeypatch.setattr(shards_module.os, "rename", rename)
    assert run(*arguments) == 0
    same_folders(keep, out)


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"labels": lists([[1, 5, 6, 1], [7, 8, 0, 10]])}, "labels differ"),
        ({"labels": lists([[1, 5, 6, 1], [7, 8, 0, 10]])}, "in row 1, position 2"),
        ({"labels": lists([[1, 5, 6], [7, 8, 9, 10]])}, "row 0 has 3 tokens, expected 4"),
        ({"attention_mask": lists([[1, 1, 1, 0], [1] * 4])}, "not all ones in row 0, position 3"),
        ({"ids": lists([[], []])}, "column input_ids, row 0 has no tokens"),
        ({"ids": lists([None, [1]])}, "column input_ids, row 0 has no tokens"),
        ({"name": "ids"}, "no column input_ids; there are ids"),
        ({"ids": lists([[1, 2], [3]])}, "row 1 has 1 tokens, expected 2"),
        ({"ids": lists([[1, 2], None])}, "1 missing rows"),
        ({"ids": lists([[1, 2], [3, None]])}, "1 missing values"),
        ({"ids": lists([[1.0, 2.0]] * 2, pyarrow.float32())}, "expected a list of integers"),
        ({"ids": lists([[1, 2], [3, 18]])}, "row 1: token 18 at position 1 is outside"),
        ({"ids": lists([[1, 2], [3, -1]])}, "row 1: token -1 at position 1 is outside"),
        ({"ids": lists([])}, "no rows"),
    ],
)
def test_bad_parquet_is_refused(tmp_path, capsys, columns, message):
    write_parquet(tmp_path / "a.parquet", ROWS[:2], **columns)
    assert run("parquet", tmp_path, "-o", tmp_path / "out", "--vocab-size", 18) == 3
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("name", ["input_ids", "labels"])
def test_parquet_with_a_column_twice_is_refused(tmp_path, capsys, name):
    columns = [lists(ROWS)] * 3
    table = pyarrow.Table.from_arrays(columns, names=["input_ids", name, "labels"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert run("parquet", tmp_path, "-o", tmp_path / "out", "--vocab-size", 18) == 3
    assert f"a.parquet: 2 columns are named {name}" in capsys.readouterr().err


def test_damaged_parquet_is_refused(tmp_path, capsys):
    write_parquet(tmp_path / "a.parquet", ROWS)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:-20])
    assert run("parquet", tmp_path, "-o", tmp_path / "out", "--vocab-size", 18) == 3
    assert "a.parquet" in capsys.readouterr().err


@pytest.mark.parametrize("rows_before", [0, 2])
def test_parquet_that_does_not_decompress_is_refused(tmp_path, capsys, rows_before):
    rows = [list(range(i, i + 400)) for i in range(4)]
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"input_ids": lists(rows)})
    pyarrow.parquet.write_table(
        table, path, row_group_size=2, compression="gzip", use_dictionary=False
    )
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(rows_before // 2).column(0)
    data = bytearray(path.read_bytes())
    middle = group.data_page_offset + group.total_compressed_size // 2
    data[middle : middle + 64] = b"\xff" * 64
    path.write_bytes(data)
    assert run("parquet", path, "-o", tmp_path / "out", "--vocab-size", 500) == 3
    assert f"{path}: " in capsys.readouterr().err


def test_large_vocabularies_take_32_bits(tmp_path):
    write_parquet(tmp_path / "a.parquet", [[65536, 70000, 0]])
    assert run("parquet", tmp_path, "-o", tmp_path / "out", "--vocab-size", 70001) == 0
    _, rows, _ = read_folder(tmp_path / "out")
    assert rows.dtype == np.uint32 and rows.tolist() == [[65536, 70000, 0]]


# open_lm


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            if not isinstance(data, bytes):
                data = gzip.compress(json.dumps(data).encode())
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_openlm(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    write_tar(folder / "b.tar", [("1.json.gz", [1, 2, 3]), ("2.json.gz", [4, -1, 0])])
    write_tar(
        folder / "a.tar",
        [("3.json", b"[5, 6, 7]"), ("4.json.gz", [1, 2]), ("5.json.gz", [0, 8, 9])],
    )
    arguments = (
        "--vocab-size",
        50,
        "--row-length",
        3,
        "--eos-token-id",
        0,
        "--document-starts",
        "after-eos",
    )
    assert run("openlm", folder, "-o", tmp_path / "sorted", *arguments) == 0
    _, rows, starts = read_folder(tmp_path / "sorted")
    assert rows.tolist() == [[5, 6, 7], [0, 8, 9], [1, 2, 3], [4, 49, 0]]
    assert starts.tolist() == [4]
    assert "1 rows had fewer than 3 tokens; left out" in capsys.readouterr().out

    manifest = folder / "manifest.jsonl"
    manifest.write_text('{"shard": "b", "num_sequences": 2}\n{"shard": "a", "num_sequences": 3}\n')
    for source in (folder, manifest):
        out = tmp_path / source.name
        assert run("openlm", source, "-o", out, *arguments) == 0
        assert read_folder(out)[1].tolist() == [[1, 2, 3], [4, 49, 0], [5, 6, 7], [0, 8, 9]]
    manifest.write_text('{"shard": "b", "num_sequences": 3}\n')
    assert run("openlm", folder, "-o", tmp_path / "counts", *arguments) == 3
    assert "2 sequences, the manifest says 3" in capsys.readouterr().err
    manifest.write_bytes(b'{"shard": "\xff"}\n')
    assert run("openlm", folder, "-o", tmp_path / "counts", *arguments) == 3
    assert "manifest.jsonl: not UTF-8 at byte 11" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"shard": "a", "num_sequences": 1e400}', 'expected "shard" and "num_sequences"'),
        ('{"shard": "a.tar", "num_sequences": 1}', "{folder}/a.tar is listed in line 1 already"),
        ('{"num_sequences": 1}', 'expected "shard" and "num_sequences"'),
        ("5", 'expected "shard" and "num_sequences"'),
        ("{", "not JSON: "),
        ("[" * 100000, "JSON beyond what can be read: maximum recursion depth"),
    ],
    ids=["infinite", "twice", "no shard", "number", "cut off", "deep"],
)
def test_a_bad_openlm_manifest_is_refused(tmp_path, capsys, line, message):
    write_tar(tmp_path / "a.tar", [("1.json", b"[1, 2, 3]")])
    (tmp_path / "manifest.jsonl").write_text(f'{{"shard": "a", "num_sequences": 1}}\n{line}\n')
    assert run("openlm", tmp_path, "-o", tmp_path / "out", "--vocab-size", 9) == 3
    message = message.replace("{folder}", str(tmp_path))
    assert f"{tmp_path / 'manifest.jsonl'}:2: {message}" in capsys.readouterr().err


def test_openlm_takes_no_tar_twice(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", [("1.json", b"[1, 2, 3]")])
    (tmp_path / "manifest.jsonl").write_text('{"shard": "a", "num_sequences": 1}\n')
    (tmp_path / "link.tar").symlink_to(tmp_path / "a.tar")
    for other in (tmp_path, tmp_path / "a.tar", tmp_path / "link.tar"):
        arguments = (tmp_path / "manifest.jsonl", other, "-o", tmp_path / "out")
        assert run("openlm", *arguments, "--vocab-size", 9) == 2
        assert ".tar is named twice; its rows would come twice" in capsys.readouterr().err


def test_openlm_goes_on(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", [(f"{i}.json.gz", [i] * (3 if i % 3 else 2)) for i in range(20)])
    arguments = ("--vocab-size", 50, "--row-length", 3, "--shard-tokens", 6)
    assert run("openlm", tmp_path, "-o", tmp_path / "a", *arguments) == 0
    rename, calls = os.rename, []

    def stopping_rename(source, target):
        calls.append(target)
        if len(calls) == 5:
            raise Stopped
        rename(source, target)

    monkeypatch.setattr(shards_module.os, "rename", stopping_rename)
    with pytest.raises(Stopped):
        run("openlm", tmp_path / "a.tar", "-o", tmp_path / "b", *arguments)
    monkeypatch.setattr(shards_module.os, "rename", rename)
    assert run("openlm", tmp_path / "a.tar", "-o", tmp_path / "b", *arguments) == 0
    same_folders(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    "members, message",
    [
        ([("a.json.gz", [1, 2, 3, 4])], "4 tokens, more than --row-length 3"),
        ([("a.json.gz", [1, 2, "3"])], "not a JSON list of ids"),
        ([("a.json.gz", [1, 2, True])], "not a JSON list of ids"),
        ([("a.json.gz", b"junk")], "not a JSON list of ids"),
        ([("a.json.gz", damaged_gzip(b"[1, 2, 3]"))], "a.tar: a.json.gz: not a JSON list of ids"),
        ([("a.json", b"[1, 2")], "not a JSON list of ids"),
        ([("a.json", b"[" * 100000)], "a.tar: a.json: not a JSON list of ids: maximum recursion"),
        ([("a.txt", b"[1, 2, 3]")], "expected members named"),
        ([("a.json.gz", [1, 2, 50])], "token 50 at position 2 is outside the vocabulary of 50"),
        ([("a.json.gz", [1, 2, 2**70])], "does not fit in 64 bits"),
        ([("a.json.gz", [1, 2])], "the input gave no row"),
    ],
)
def test_bad_openlm_is_refused(tmp_path, capsys, members, message):
    write_tar(tmp_path / "a.tar", members)
    arguments = ("-o", tmp_path / "out", "--vocab-size", 50, "--row-length", 3)
    assert run("openlm", tmp_path, *arguments) == 3
    assert message in capsys.readouterr().err


def test_truncated_tar_is_refused(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", [("a.json.gz", [1, 2, 3]), ("b.json.gz", [1, 2, 4])])
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:1030])
    arguments = ("-o", tmp_path / "out", "--vocab-size", 50, "--row-length", 3)
    assert run("openlm", tmp_path, *arguments) == 3
    assert "a.tar" in capsys.readouterr().err


# manifest


def test_manifest_describes_foreign_files(tmp_path, capsys):
    folder = tmp_path / "foreign"
    folder.mkdir()
    for name, value in (("b.h5", 2), ("a.h5", 1)):
        with h5py.File(folder / name, "w") as file:
            file["tokens"] = np.full((3, 4), value, np.int32)
    assert run("manifest", folder, "--vocab-size", 10) == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [file["name"] for file in manifest["files"]] == ["a.h5", "b.h5"]
    assert manifest["row_length"] == 4 and manifest["tokens"] == 24
    assert run("manifest", folder, "--vocab-size", 10) == 2
    (folder / "manifest.json").unlink()
    with h5py.File(folder / "c.h5", "w") as file:
        file["ids"] = np.zeros((3, 4), np.int32)
    assert run("manifest", folder, "--vocab-size", 10) == 3
    said = capsys.readouterr().err
    assert "expected a dataset `tokens`" in said and "there are: ids" in said


@pytest.mark.parametrize(
    "tokens, message",
    [
        (np.array([[1, 2], [3, 10]], np.int32), "token 10 at position 3 is outside the vocabulary"),
        (np.array([1, -2], np.int8), "token -2 at position 1 is outside the vocabulary of 10"),
        (np.array([1, 2**64 - 1], np.uint64), "token 18446744073709551615 at position 1"),
        (np.array([1.0, 2.0], np.float32), "`tokens` is float32, expected integers"),
    ],
)
def test_manifest_refuses_foreign_tokens(tmp_path, capsys, monkeypatch, tokens, message):
    monkeypatch.setattr(shards_module, "BLOCK_TOKENS", 2)  # a block ends before what is wrong
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tokens"] = tokens
    assert run("manifest", tmp_path, "--vocab-size", 10) == 3
    assert message in capsys.readouterr().err
    assert not (tmp_path / "manifest.json").exists()


TOKENS = np.arange(6, dtype=np.int32)


def soft_link(file):
    file["tokens"] = h5py.SoftLink("/nothing")


def external_link(file):
    with h5py.File(file.filename + ".other", "w") as other:
        other["tokens"] = TOKENS
    file["tokens"] = h5py.ExternalLink(file.filename + ".other", "tokens")


def starts_group(file):
    file["tokens"] = TOKENS
    file.create_group("document_starts")


def starts(*values):
    def write(file):
        file["tokens"] = TOKENS
        file["document_starts"] = np.array(values)

    return write


def others(file):
    file["tokens"], file["mask"] = TOKENS, TOKENS


def unwritten(file):
    file.create_dataset("tokens", (1 << 40,), np.int32, chunks=(1 << 10,))


def large_chunks(file):
    file.create_dataset("tokens", (9,), np.int32, chunks=((16 << 20) + 1,), maxshape=(None,))


def other_filter(file):
    file.create_dataset("tokens", data=TOKENS, compression="lzf")


def virtual(file):
    file["tokens"] = TOKENS
    layout = h5py.VirtualLayout((6,), np.int32)
    layout[:] = h5py.VirtualSource(file["tokens"])
    del file["tokens"]
    file.create_virtual_dataset("tokens", layout)


def attribute(name, value):
    def write(file):
        file["tokens"] = TOKENS
        file.attrs[name] = value

    return write


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda file: file.create_dataset("tokens", (3, 0), np.int32), "has rows of 0 tokens"),
        (lambda file: file.create_group("tokens"), "a group, expected datasets `tokens`"),
        (lambda file: file.create_dataset("tokens", data=5), "has rank 0, expected 1 or 2"),
        (soft_link, "`tokens` is a soft link, expected the dataset itself"),
        (external_link, "`tokens` is an external link, expected the dataset itself"),
        (others, "nothing else but `document_starts`; there are: mask, tokens"),
        (virtual, "`tokens` has its data in other files"),
        (unwritten, "`tokens` claims 4398046511104 bytes, more than a file of"),
        (large_chunks, "`tokens` has chunks of 67108868 bytes, expected at most 67108864"),
        (other_filter, "`tokens` uses filters [32000], expected only deflate"),
        (starts_group, "a group, expected datasets"),
        (starts(0, 4, 4), "document_starts[2] is 4, expected more than 4 and less than 6"),
        (starts(0, 4, 2), "document_starts[2] is 2, expected more than 4 and less than 6"),
        (starts(-1, 2), "document_starts[0] is -1, expected more than -1 and less than 6"),
        (starts(0, 6), "document_starts[1] is 6, expected more than 0 and less than 6"),
        (starts(np.uint64(0), np.uint64(2**64 - 1)), "document_starts[1] is 18446744073709551615"),
        (starts([0, 1]), "`document_starts` has rank 2, expected 1"),
        (starts(0.0, 1.0), "`document_starts` is float64, expected integers"),
        (starts(*range(7)), "lists 7 document starts for 6 tokens"),
        (attribute("vocab_size", 9), "attribute `vocab_size` is 9, this manifest would say 10"),
        (attribute("source_bytes", 9), "is 9, this manifest would say nothing; is this a shard"),
    ],
)
def test_manifest_refuses_what_no_program_reads(tmp_path, capsys, write, message):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write(file)
    assert run("manifest", tmp_path, "--vocab-size", 10) == 3
    said = capsys.readouterr().err
    assert f"{tmp_path / 'a.h5'}: " in said and message in said
    assert not (tmp_path / "manifest.json").exists()


def test_manifest_takes_what_programs_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        starts(0, 2, 5)(file)
        file.attrs["vocab_size"], file.attrs["documents"] = 10, 3
    with h5py.File(tmp_path / "b.h5", "w") as file:
        starts()(file)
        del file["document_starts"], file["tokens"]
        file["document_starts"] = np.empty(0, ">i4")
        file.create_dataset("tokens", data=TOKENS.astype(">u8"), compression="gzip", shuffle=True)
    assert run("manifest", tmp_path, "--vocab-size", 10) == 0
    files = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert [file["documents"] for file in files] == [3, 0]


@pytest.mark.parametrize("keep", [0, 90, -9], ids=["empty", "junk", "truncated"])
def test_manifest_refuses_damaged_files(tmp_path, capsys, keep):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["tokens"] = TOKENS
    path.write_bytes(b"junk" * 99 if keep == 90 else path.read_bytes()[:keep])
    assert run("manifest", tmp_path, "--vocab-size", 10) == 3
    assert f"{path}: not readable as HDF5: " in capsys.readouterr().err


@pytest.mark.parametrize("name", [b"\xff.h5", b"a\\b.h5"])
def test_manifest_refuses_names_that_it_cannot_hold(tmp_path, capsys, name):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tokens"] = TOKENS
    (tmp_path / "a.h5").rename(tmp_path / os.fsdecode(name))
    assert run("manifest", tmp_path, "--vocab-size", 10) == 3
    assert f"a manifest cannot name {os.fsdecode(name)!r}: " in capsys.readouterr().err


def test_manifest_refuses_the_same_file_twice(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tokens"] = TOKENS
    (tmp_path / "b.h5").hardlink_to(tmp_path / "a.h5")
    assert run("manifest", tmp_path, "--vocab-size", 10) == 3
    said = capsys.readouterr().err
    assert f"{tmp_path / 'b.h5'}: has the contents of {tmp_path / 'a.h5'}" in said
    (tmp_path / "b.h5").unlink()
    (tmp_path / "b.h5").symlink_to("nothing")
    assert run("manifest", tmp_path, "--vocab-size", 10) == 3
    assert f"{tmp_path / 'b.h5'}: not a regular file" in capsys.readouterr().err
