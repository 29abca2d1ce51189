"""Tests of scripts/prepare_data.py: texts, and its options."""

import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import xxhash
from prepared import DOCUMENTS, SCRIPT, damaged_gzip, expected_text, read_folder, run
from tokenizers import Tokenizer


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


def test_a_number_is_an_id_and_all_else_a_text(tokenizer, jsonl, tmp_path):
    ids = Tokenizer.from_file(str(tokenizer)).get_vocab()
    assert ids["7"] != 7  # the digit is a token of its own, with another id
    out = tmp_path / "out"
    arguments = ("--eos-token", "7", "--bos-token", "x", "--pad-token", "<|bos|>")
    assert run("text", jsonl, "-o", out, "--tokenizer", tokenizer, *arguments) == 0
    manifest, tokens, _ = read_folder(out)
    assert manifest["eos_token_id"] == 7
    assert (manifest["bos_token_id"], manifest["pad_token_id"]) == (ids["x"], 1)
    assert tokens.tolist() == expected_text(tokenizer, DOCUMENTS, after=(7,))[0]


def test_a_number_in_tokenizer_config_is_a_text(tokenizer, jsonl, tmp_path):
    copy = tmp_path / "tokenizer.json"
    copy.write_bytes(tokenizer.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "7"}')
    assert run("text", jsonl, "-o", tmp_path / "out", "--tokenizer", copy) == 0
    wanted = Tokenizer.from_file(str(tokenizer)).token_to_id("7")
    assert read_folder(tmp_path / "out")[0]["eos_token_id"] == wanted


@pytest.mark.parametrize(
    "config, message",
    [
        (b'{"eos_token": ', "not JSON: Expecting value"),
        (b'{"eos_token": "\xff"}', "not UTF-8 at byte 15"),
        (b"[" * 100000, "JSON beyond what can be read: maximum recursion depth"),
        (b'["<|eos|>"]', "expected a JSON object, got ['<|eos|>']"),
        (b'{"eos_token": 7}', "eos_token is 7, expected its text"),
        (b'{"pad_token": {"id": 7}}', "pad_token is {'id': 7}, expected its text"),
    ],
)
def test_a_damaged_tokenizer_config_is_refused(
    tokenizer, jsonl, tmp_path, capsys, config, message
):
    copy = tmp_path / "tokenizer.json"
    copy.write_bytes(tokenizer.read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes(config)
    assert run("text", jsonl, "-o", tmp_path / "out", "--tokenizer", copy) == 3
    assert f"{tmp_path / 'tokenizer_config.json'}: {message}" in capsys.readouterr().err


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


def test_files_left_out_are_said(tokenizer, jsonl, tmp_path, capsys):
    texts = tmp_path / "texts"
    texts.mkdir()
    jsonl.rename(texts / jsonl.name)
    (texts / "notes.md").write_text("no text to train on")
    assert run("text", texts, "-o", tmp_path / "out", "--tokenizer", tokenizer) == 0
    assert "left out 1 file(s)" in (said := capsys.readouterr().out) and "notes.md" in said


def test_names_of_files_need_not_be_utf8(tokenizer, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.txt")).write_text("Olá")
    (folder / os.fsdecode(b"\xfe.png")).write_bytes(b"")
    command = [sys.executable, SCRIPT, "text", folder, "-o", tmp_path / "out"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    ran = subprocess.run(
        [*command, "--tokenizer", tokenizer], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0 and "such as \\udcfe.png" in ran.stdout, ran.stderr
    assert read_folder(tmp_path / "out")[1].tolist() == expected_text(tokenizer, ["Olá"])[0]


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


@pytest.mark.parametrize("split", ["file", "line", "paragraph"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
def test_a_byte_order_mark_at_the_start_is_no_text(tokenizer, tmp_path, name, split):
    text = "Olá, \ufeffmundo"  # only at the start is it a mark
    data = json.dumps({"text": text}, ensure_ascii=False) if name == "a.jsonl" else text
    data = b"\xef\xbb\xbf" + data.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    arguments = ("-o", tmp_path / "out", "--tokenizer", tokenizer, "--documents", split)
    assert run("text", tmp_path / name, *arguments) == 0
    manifest, tokens, _ = read_folder(tmp_path / "out")
    assert tokens.tolist() == expected_text(tokenizer, [text])[0]
    assert manifest["source_bytes"] == len(text.encode())


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("a.txt", b"abc \xff def", "a.txt: not UTF-8 at byte 4"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 5}\n', 'a.jsonl:2: no text in field "text"'),
        ("a.jsonl", b'["x"]', "a.jsonl:1: no text"),
        ("a.jsonl", b'{"text": "x"', "a.jsonl:1: not JSON"),
        ("a.jsonl", b"\n" + b"[" * 100000, "a.jsonl:2: JSON beyond what can be read: maximum"),
        ("a.jsonl", b"7" * 5000, "a.jsonl:1: JSON beyond what can be read: Exceeds the limit"),
        ("a.jsonl", b'{"text": "\\ud83d"}', "half a surrogate pair"),
        ("a.txt.gz", b"not gzip", "a.txt.gz: Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"x" * 99999)[:-9], "a.txt.gz: Compressed file ended"),
        ("a.txt.gz", damaged_gzip(b"x" * 99999), "a.txt.gz: Error -3 while decompressing data"),
        ("a.jsonl.gz", damaged_gzip(b'{"text": "x"}'), "a.jsonl.gz: Error -3 while decompressing"),
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
        ((jsonl, *out, "--pad-token", -1), 2, "--pad-token -1 is outside the vocabulary of"),
        ((jsonl, *out, "--pad-token", "\udcff"), 3, "has no token '\\udcff' (the pad token)"),
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
        (("--vocab-size", 2**31 + 1), "--vocab-size is 2147483649, expected at most 2^31"),
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
