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
    assert "no dataset `tokens`; there are: ids" in capsys.readouterr().err


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
