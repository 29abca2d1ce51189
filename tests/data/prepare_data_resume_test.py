"""Tests of scripts/prepare_data.py: the same bytes however often it is stopped, even on a full disk."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from prepared import DOCUMENTS, SCRIPT, Stopped, run, same_folders, shards_module, text_module


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
