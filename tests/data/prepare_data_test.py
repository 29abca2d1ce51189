"""Tests of scripts/prepare_data.py: what it writes, what it refuses, and that it can be killed."""

import filecmp
import gzip
import importlib.util
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import xxhash
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SOURCE = Path(__file__).resolve().parents[2]
SCRIPT = SOURCE / "scripts" / "prepare_data.py"
specification = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
prepare_data = importlib.util.module_from_spec(specification)
specification.loader.exec_module(prepare_data)
from jiboia_data import shards as shards_module  # noqa: E402  (the script adds its folder)
from jiboia_data import text as text_module  # noqa: E402

DOCUMENTS = [f"Olá, {i}! Coração 🐍 {'x' * (i % 40)}.\n" * (1 + i % 3) for i in range(300)]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|eos|>", "<|bos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(DOCUMENTS, trainer)
    made.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": "<|bos|>"}, "eos_token": "<|eos|>", "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "tokenizer.json"


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return path


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


# text


def test_text_becomes_a_stream(tokenizer, jsonl, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("text", jsonl, "-o", out, "--tokenizer", tokenizer, "--shard-tokens", 1000) == 0
    manifest, tokens, starts = read_folder(out)
    wanted, wanted_starts = expected_text(tokenizer, DOCUMENTS)
    assert tokens.tolist() == wanted and tokens.dtype == np.uint16
    assert starts.tolist() == wanted_starts
    assert manifest["layout"] == "stream" and "row_length" not in manifest
    assert manifest["source_bytes"] == sum(len(text.encode()) for text in DOCUMENTS)
    assert (manifest["eos_token_id"], manifest["bos_token_id"]) == (0, 1)
    assert [file["tokens"] for file in manifest["files"][:-1]] == [1000] * (len(wanted) // 1000)
    assert (out / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
    digest = xxhash.xxh3_64_hexdigest(tokenizer.read_bytes())
    assert manifest["tokenizer"] == "xxh3:" + digest
    assert [f["name"] for f in manifest["tokenizer_files"]] == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert f"{len(wanted):,} tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    "rule, before, after",
    [("bos-before", (1,), ()), ("both", (1,), (0,)), ("none", (), ()), ("eos-after", (), (0,))],
)
def test_separators(tokenizer, jsonl, tmp_path, rule, before, after):
    assert (
        run("text", jsonl, "-o", tmp_path / "out", "--tokenizer", tokenizer, "--separator", rule)
        == 0
    )
    _, tokens, starts = read_folder(tmp_path / "out")
    wanted, wanted_starts = expected_text(tokenizer, DOCUMENTS, before, after)
    assert tokens.tolist() == wanted and starts.tolist() == wanted_starts


def test_text_becomes_rows(tokenizer, jsonl, tmp_path, capsys):
    arguments = ("--tokenizer", tokenizer, "--row-length", 33, "--shard-tokens", 1000)
    assert run("text", jsonl, "-o", tmp_path / "out", *arguments) == 0
    manifest, rows, starts = read_folder(tmp_path / "out")
    wanted, wanted_starts = expected_text(tokenizer, DOCUMENTS)
    kept = len(wanted) // 33 * 33
    assert rows.shape == (kept // 33, 33) and rows.ravel().tolist() == wanted[:kept]
    assert starts.tolist() == [start for start in wanted_starts if start < kept]
    assert manifest["row_length"] == 33 and manifest["files"][0]["rows"] == 30
    assert f"{len(wanted) - kept} tokens at the end did not fill a row" in capsys.readouterr().out


def test_large_vocabularies_take_32_bits(tmp_path):
    write_parquet(tmp_path / "a.parquet", [[65536, 70000, 0]])
    assert run("parquet", tmp_path, "-o", tmp_path / "out", "--vocab-size", 70001) == 0
    _, rows, _ = read_folder(tmp_path / "out")
    assert rows.dtype == np.uint32 and rows.tolist() == [[65536, 70000, 0]]


def test_validation_split_follows_the_text(tokenizer, jsonl, tmp_path):
    arguments = ("--tokenizer", tokenizer, "--validation-fraction", 0.1)
    assert run("text", jsonl, "-o", tmp_path / "out", *arguments) == 0
    parts = {True: [], False: []}
    for text in DOCUMENTS:
        parts[xxhash.xxh3_64_intdigest(text.encode()) < 0.1 * 2**64].append(text)
    assert 10 < len(parts[True]) < 60
    for name, part in (("train", parts[False]), ("validation", parts[True])):
        manifest, tokens, _ = read_folder(tmp_path / "out" / name)
        assert tokens.tolist() == expected_text(tokenizer, part)[0]
        assert manifest["source_bytes"] == sum(len(text.encode()) for text in part)


def test_text_files(tokenizer, tmp_path):
    folder = tmp_path / "text"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text("um\ndois\n\n\ntrês\n")
    (folder / "b" / "c.txt.gz").write_bytes(gzip.compress("quatro".encode()))
    (folder / "b" / "d.jsonl").write_text('{"body": "cinco"}\n\n{"body": "  "}\n')
    (folder / "ignored.png").write_bytes(b"\xff")
    wanted = {
        "file": ["um\ndois\n\n\ntrês\n", "quatro", "cinco"],
        "line": ["um", "dois", "três", "quatro", "cinco"],
        "paragraph": ["um\ndois", "três", "quatro", "cinco"],
    }
    for split, documents in wanted.items():
        out = tmp_path / split
        arguments = ("--tokenizer", tokenizer, "--documents", split, "--field", "body")
        assert run("text", folder, "-o", out, *arguments) == 0
        assert read_folder(out)[1].tolist() == expected_text(tokenizer, documents)[0]


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("a.txt", b"abc \xff def", "a.txt: not UTF-8 at byte 4"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 5}\n', 'a.jsonl:2: no text in field "text"'),
        ("a.jsonl", b'["x"]', "a.jsonl:1: no text"),
        ("a.jsonl", b'{"text": "x"', "a.jsonl:1: not JSON"),
        ("a.jsonl", b'{"text": "\\ud83d"}', "half a surrogate pair"),
        ("a.txt.gz", b"not gzip", "a.txt.gz: Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"x" * 99999)[:-9], "a.txt.gz: Compressed file ended"),
        ("a.png", b"", "no *.txt"),
    ],
)
def test_bad_text_is_refused(tokenizer, tmp_path, capsys, name, data, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    assert run("text", tmp_path / "in", "-o", tmp_path / "out", "--tokenizer", tokenizer) == 3
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_usage_errors(tokenizer, jsonl, tmp_path, capsys):
    out = ("-o", tmp_path / "out", "--tokenizer", tokenizer)
    for arguments, code, message in [
        ((jsonl, jsonl, *out), 2, "named twice"),
        ((tmp_path / "absent", *out), 3, "no such file"),
        ((jsonl, *out, "--validation-fraction", 1), 2, "--validation-fraction"),
        ((jsonl, *out, "--shard-tokens", 0), 2, "--shard-tokens is 0"),
        ((jsonl, *out, "--row-length", 50, "--shard-tokens", 49), 2, "one row has 50"),
        ((jsonl, *out, "--eos-token", "<none>"), 3, "has no token '<none>'"),
        ((jsonl, *out, "--pad-token", 99999), 2, "--pad-token 99999 is outside the vocabulary of"),
        ((jsonl, "-o", tmp_path / "out", "--tokenizer", jsonl), 2, "must be named tokenizer.json"),
        ((jsonl, "-o", tmp_path / "out", "--tokenizer", "absent"), 3, "no such tokenizer"),
    ]:
        assert run("text", *arguments) == code
        assert message in capsys.readouterr().err
    bare = tmp_path / "bare" / "tokenizer.json"
    bare.parent.mkdir()
    bare.write_bytes(tokenizer.read_bytes())
    assert run("text", jsonl, "-o", tmp_path / "out", "--tokenizer", bare) == 2
    assert "needs --eos-token" in capsys.readouterr().err
    for name in ("absent", "text"):
        with pytest.raises(SystemExit) as stop:
            run(name, "-o", tmp_path / "out")
        assert stop.value.code == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--vocab-size", 0), "--vocab-size is 0"),
        (("--vocab-size", -5, "--eos-token-id", 0), "--vocab-size is -5"),
        (("--vocab-size", 9, "--eos-token-id", 9), "--eos-token-id 9 is outside the vocabulary"),
        (("--vocab-size", 9, "--pad-token-id", -1), "--pad-token-id -1 is outside"),
        (("--vocab-size", 9, "--document-starts", "at-bos"), "at-bos needs --bos-token-id"),
        (("--vocab-size", 9, "--shard-tokens", 0), "--shard-tokens is 0"),
    ],
)
def test_options_are_checked_before_the_input(tmp_path, capsys, arguments, message):
    commands = ["parquet", "openlm"] + ["manifest"] * (len(arguments) == 2)
    for command in commands:
        output = () if command == "manifest" else ("-o", tmp_path / "out")
        assert run(command, tmp_path / "absent", *output, *arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Stopping and going on.


def text_arguments(jsonl, tokenizer, out):
    return (
        *("text", jsonl, "-o", out, "--tokenizer", tokenizer),
        *("--validation-fraction", "0.2", "--shard-tokens", "700", "--compression", "1"),
    )


@pytest.fixture
def undisturbed(tokenizer, jsonl, tmp_path):
    out = tmp_path / "undisturbed"
    assert run(*text_arguments(jsonl, tokenizer, out)) == 0
    return out


def same_results(a, b):
    same_folders(a / "train", b / "train")
    same_folders(a / "validation", b / "validation")


def test_the_same_input_gives_the_same_bytes(tokenizer, jsonl, tmp_path, undisturbed):
    assert run(*text_arguments(jsonl, tokenizer, tmp_path / "again")) == 0
    same_results(undisturbed, tmp_path / "again")


class Stopped(BaseException):
    """Stands for the death of the process: no handler of the program sees it."""


@pytest.mark.parametrize("after_rename", [False, True])
def test_stopping_at_every_rename(
    tokenizer, jsonl, tmp_path, undisturbed, monkeypatch, after_rename
):
    rename, encoded = os.rename, []
    encode = text_module.TextEncoder.encode
    monkeypatch.setattr(
        text_module.TextEncoder,
        "encode",
        lambda self, b: encoded.extend(b) or encode(self, b),
    )
    monkeypatch.setattr(text_module, "BATCH_DOCUMENTS", 7)
    work = []
    for stop in range(1000):
        out = tmp_path / f"stop_{stop}"
        calls = 0

        def counting_rename(source, target):
            nonlocal calls
            calls += 1
            if after_rename or calls <= stop:
                rename(source, target)
            if calls > stop:
                raise Stopped

        monkeypatch.setattr(shards_module.os, "rename", counting_rename)
        try:
            finished = run(*text_arguments(jsonl, tokenizer, out)) == 0
        except Stopped:
            finished = False
        monkeypatch.setattr(shards_module.os, "rename", rename)
        if finished:
            break
        encoded.clear()
        assert run(*text_arguments(jsonl, tokenizer, out)) == 0
        work.append(len(encoded))
        same_results(undisturbed, out)
    assert stop > 15
    assert work[0] == len(DOCUMENTS) and work[-1] == 0  # finished shards are not tokenized again


def test_kill_at_any_moment(tokenizer, jsonl, tmp_path, undisturbed):
    command = [sys.executable, SCRIPT, *text_arguments(jsonl, tokenizer, tmp_path / "killed")]
    begin = time.monotonic()
    subprocess.run(
        command[:5] + [tmp_path / "timed"] + command[6:], check=True, capture_output=True
    )
    duration = time.monotonic() - begin
    dice = random.Random(1)
    for _ in range(12):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.3, 1.0) * duration)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    same_results(undisturbed, tmp_path / "killed")


def test_other_options_or_input_are_refused(tokenizer, jsonl, tmp_path, undisturbed, capsys):
    arguments = text_arguments(jsonl, tokenizer, undisturbed)
    before = {p: p.read_bytes() for p in undisturbed.rglob("*") if p.is_file()}
    assert run(*arguments[:-1], 2) == 2
    assert "compression: 1 then, 2 now" in capsys.readouterr().err
    with jsonl.open("a") as file:
        file.write('{"text": "more"}\n')
    assert run(*arguments) == 2
    assert "input_bytes" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in undisturbed.rglob("*") if p.is_file()}


def test_input_that_failed_can_be_mended(tokenizer, jsonl, tmp_path, undisturbed, capsys):
    good = jsonl.read_bytes()
    jsonl.write_bytes(b"no JSON\n")
    arguments = text_arguments(jsonl, tokenizer, tmp_path / "out")
    assert run(*arguments) == 3
    jsonl.write_bytes(good)
    assert run(*arguments) == 0, capsys.readouterr().err
    same_results(undisturbed, tmp_path / "out")


def test_foreign_or_missing_shards_are_refused(tokenizer, jsonl, tmp_path, undisturbed, capsys):
    foreign = tmp_path / "foreign" / "train"
    foreign.mkdir(parents=True)
    (foreign / "shard_00000.h5").write_bytes(b"")
    assert run(*text_arguments(jsonl, tokenizer, foreign.parent)) == 2
    assert "did not write" in capsys.readouterr().err
    (undisturbed / "train" / "manifest.json").unlink()
    (undisturbed / "train" / "shard_00001.h5").unlink()
    assert run(*text_arguments(jsonl, tokenizer, undisturbed)) == 3
    assert "shards before this one are missing" in capsys.readouterr().err


def test_a_full_disk_exits_7(tokenizer, jsonl, tmp_path):
    command = [
        sys.executable,
        SCRIPT,
        "text",
        jsonl,
        "-o",
        tmp_path / "out",
        "--tokenizer",
        tokenizer,
    ]
    limited = subprocess.run(
        ["bash", "-c", 'trap "" XFSZ; ulimit -f 8; exec "$@"', "bash", *command],
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 7, limited.stderr
    assert "Traceback" not in limited.stderr
    assert subprocess.run(command, capture_output=True).returncode == 0


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
