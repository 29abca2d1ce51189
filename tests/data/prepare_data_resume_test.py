"""Tests of scripts/prepare_data.py: the same bytes however often it is stopped, even on a full
disk, and no going on with other input."""

import errno
import json
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
    assert "input_bytes" in (said := capsys.readouterr().err)
    assert "it is finished, and training can use it as it is" in said
    assert before == {p: p.read_bytes() for p in undisturbed.rglob("*") if p.is_file()}


def rewrite(path, text):
    times = path.stat()
    path.write_text(text)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def swap(a, b):
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


@pytest.mark.parametrize(
    "change",
    [
        lambda a, b: a.rename(a.with_name("also_a.txt")),
        lambda a, b: os.utime(a, ns=(0, a.stat().st_mtime_ns + 1)),
        lambda a, b: (rewrite(a, "Other"), rewrite(b, "sizes!!")),
        swap,
    ],
    ids=["renamed", "touched", "other sizes of the same sum", "swapped"],
)
def test_changed_files_among_many_are_refused(tokenizer, tmp_path, capsys, change):
    texts = tmp_path / "texts"
    (texts / "sub").mkdir(parents=True)
    files = [texts / "sub" / f"{i:02}.txt" for i in range(20)]
    for i, file in enumerate(files):
        file.write_text(f"Olá {i:02}")
        os.utime(file, ns=(i, i))
    arguments = ("-o", tmp_path / "out", "--tokenizer", tokenizer, "--shard-tokens", 20)
    assert run("text", texts, *arguments) == 0
    capsys.readouterr()
    moved = texts.rename(tmp_path / "moved")
    assert run("text", moved, *arguments) == 0, capsys.readouterr().err  # the same files
    (tmp_path / "out" / "manifest.json").unlink()
    change(*(moved / file.relative_to(texts) for file in files[:2]))
    assert run("text", moved, *arguments) == 2
    said = capsys.readouterr().err
    assert "input_listing: " in said and "a touched or copied file" in said
    assert "remove the folder to begin anew" in said and "it is finished" not in said
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_files_in_another_order_are_refused(tokenizer, tmp_path, capsys):
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text("Olá")
    arguments = ("-o", tmp_path / "out", "--tokenizer", tokenizer)
    assert run("text", *files, *arguments) == 0
    assert run("text", *files[::-1], *arguments) == 2
    assert "input_listing: " in capsys.readouterr().err


def test_folders_of_an_earlier_version_are_refused(tokenizer, jsonl, undisturbed, capsys):
    """Its prepare.json named up to 16 files, without their times, and counted more."""
    recipe = undisturbed / "train" / "prepare.json"
    earlier = json.loads(recipe.read_text())
    del earlier["input_listing"], earlier["input_files"]
    recipe.write_text(json.dumps(earlier | {"inputs": [[jsonl.name, earlier["input_bytes"]]]}))
    assert run(*text_arguments(jsonl, tokenizer, undisturbed)) == 2
    said = capsys.readouterr().err
    assert "an earlier version" in said and "training can use it as it is" in said


def test_input_that_failed_can_be_mended(tokenizer, jsonl, tmp_path, undisturbed, capsys):
    good, times = jsonl.read_bytes(), jsonl.stat()
    jsonl.write_bytes(b"no JSON\n")
    arguments = text_arguments(jsonl, tokenizer, tmp_path / "out")
    assert run(*arguments) == 3
    jsonl.write_bytes(good)
    os.utime(jsonl, ns=(times.st_atime_ns, times.st_mtime_ns))
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


def test_a_second_run_is_refused(tokenizer, jsonl, tmp_path, undisturbed, monkeypatch, capsys):
    out = tmp_path / "out"
    arguments = text_arguments(jsonl, tokenizer, out)
    rename, calls, seconds, manifests = os.rename, [], [], []

    def rename_beside_others(source, target):
        calls.append(target)
        if len(calls) in (1, 5):  # of the recipe, and of a shard
            command = [sys.executable, SCRIPT, *arguments]
            seconds.append(subprocess.run(command, capture_output=True, text=True))
            manifests.append(run("manifest", target.parent, "--vocab-size", 300))
        rename(source, target)

    monkeypatch.setattr(shards_module.os, "rename", rename_beside_others)
    assert run(*arguments) == 0
    monkeypatch.setattr(shards_module.os, "rename", rename)
    refusal = f"prepare_data.py: {out / 'train'}: another prepare_data.py is at work in it"
    for second in seconds:
        assert second.returncode == 2 and refusal in second.stderr, second
    assert manifests == [2, 2] and len(seconds) == 2
    assert capsys.readouterr().err.count("another prepare_data.py is at work in it") == 2
    same_results(undisturbed, out)  # no file of a lock is left either
    assert run(*arguments) == 0, capsys.readouterr().err


def test_a_folder_that_cannot_be_locked_is_named(tokenizer, jsonl, tmp_path, monkeypatch, capsys):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(shards_module.fcntl, "flock", flock)
    assert run(*text_arguments(jsonl, tokenizer, tmp_path / "out")) == 7
    assert f"cannot lock: No locks available: '{tmp_path / 'out' / 'train'}'" in (
        capsys.readouterr().err
    )


def test_a_full_disk_exits_7_and_names_the_file(tokenizer, jsonl, tmp_path):
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
    unfinished = tmp_path / "out" / "shard_00000.h5.tmp"
    assert f"cannot write: File too large: '{unfinished}'" in limited.stderr
    assert subprocess.run(command, capture_output=True).returncode == 0
