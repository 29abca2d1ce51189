"""Tests of the program `shards`: what it prints, and what it says of bad folders."""

import json
import os
import random
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash

PROGRAM = Path(os.environ["JIBOIA_BUILD_DIR"]) / "bin" / "shards"


def shards(*arguments):
    return subprocess.run(
        [PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def write_shard(path, tokens, starts=None):
    with h5py.File(path, "w") as file:
        file.create_dataset("tokens", data=tokens, chunks=(4, tokens.shape[1]), fletcher32=True)
        if starts is not None:
            file["document_starts"] = np.array(starts, np.int64)


def write_manifest(folder, vocab_size=100, documents=None):
    files = []
    for path in sorted(folder.glob("*.h5")):
        data = path.read_bytes()
        files.append({"name": path.name, "bytes": len(data), "tokens": 60, "rows": 12})
        files[-1]["xxh3"] = xxhash.xxh3_64_hexdigest(data)
        if documents is not None:
            files[-1]["documents"] = documents
    manifest = {"format": "jiboia-token-shards", "format_version": 1, "layout": "rows"}
    manifest |= {"row_length": 5, "vocab_size": vocab_size, "tokens": 60 * len(files)}
    manifest |= {"eos_token_id": 2, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def folder(tmp_path):
    """Three shards of 12 rows of 5 tokens, all different."""
    for i in range(3):
        tokens = (np.arange(60, dtype=np.uint16).reshape(12, 5) + i) % 100
        write_shard(tmp_path / f"shard_{i:05d}.h5", tokens)
    write_manifest(tmp_path)
    return tmp_path


def test_inspect(folder):
    result = shards("inspect", folder, "--json")
    facts = json.loads(result.stdout)
    assert result.returncode == 0 and result.stderr == ""
    assert (facts["layout"], facts["rows"], facts["row_length"]) == ("rows", 36, 5)
    assert (facts["tokens"], facts["vocab_size"], facts["eos_token_id"]) == (180, 100, 2)
    assert [file["name"] for file in facts["files"]] == [f"shard_{i:05d}.h5" for i in range(3)]
    table = shards("inspect", folder).stdout
    assert "rows             36\n" in table
    assert all(file["xxh3"] in table for file in facts["files"])


def test_verify(folder):
    result = shards("verify", folder)
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.count(": ok, 60 tokens") == 3
    assert "3 files, 180 tokens, all well" in result.stdout


def test_verify_names_every_bad_file(folder):
    tokens = np.zeros((12, 5), np.uint16)
    tokens[7, 3] = 100
    write_shard(folder / "shard_00001.h5", tokens)
    write_manifest(folder)
    data = bytearray((folder / "shard_00002.h5").read_bytes())
    data[-1] ^= 1
    (folder / "shard_00002.h5").write_bytes(data)
    result = shards("verify", folder)
    assert result.returncode == 3
    assert "shard_00000.h5: ok" in result.stdout
    assert "row 7, column 3: token 100 is outside the vocabulary of 100" in result.stdout
    assert "shard_00002.h5: BAD" in result.stdout and "contents have hash" in result.stdout
    assert "2 of 3 files are bad" in result.stderr


def test_verify_checks_document_starts(folder):
    for i, starts in enumerate(([0, 7, 9], [0, 9, 7], [0, 7, 60])):
        tokens = np.full((12, 5), i, np.uint16)
        write_shard(folder / f"shard_{i:05d}.h5", tokens, starts)
    write_manifest(folder, documents=3)
    result = shards("verify", folder)
    assert result.returncode == 3
    assert "shard_00000.h5: ok" in result.stdout
    assert "document_starts[2] is 7, expected more than 9 and less than 60" in result.stdout
    assert "document_starts[2] is 60, expected more than 7 and less than 60" in result.stdout


def test_verify_survives_what_hdf5_may_not(folder):
    """Flipped bits behind a manifest that vouches for them: found or harmless, never the end."""
    for name in ("shard_00001.h5", "shard_00002.h5"):
        (folder / name).unlink()
    path = folder / "shard_00000.h5"
    good = path.read_bytes()
    dice = random.Random(1)
    for _ in range(300):
        data = bytearray(good)
        data[dice.randrange(3000)] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        write_manifest(folder)
        result = shards("verify", folder)
        assert result.returncode in (0, 3), result
        assert result.stdout.startswith("shard_00000.h5: ")


def test_verify_tells_a_failing_system_from_bad_data(folder):
    command = 'ulimit -n 4; exec "$0" verify "$1"'
    result = subprocess.run(
        ["sh", "-c", command, PROGRAM, folder], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 7, result
    assert result.stdout.count(": NOT CHECKED: cannot ") == 3, result
    assert "Too many open files" in result.stdout
    assert "3 of 3 files could not be checked" in result.stderr


def test_bad_folders(tmp_path):
    for command in ("inspect", "verify"):
        result = shards(command, tmp_path / "absent")
        assert result.returncode == 3 and "no such folder" in result.stderr
        result = shards(command, tmp_path)
        assert result.returncode == 3 and "manifest.json: missing" in result.stderr
    (tmp_path / "manifest.json").write_text('{"format": "jiboia-token-shards"')
    result = shards("inspect", tmp_path)
    assert result.returncode == 3 and "manifest.json" in result.stderr
    assert result.stdout == ""


def test_command_line():
    for arguments in ((), ("inspect",), ("verify", "a", "b"), ("polish", "a"), ("inspect", "--x")):
        result = shards(*arguments)
        assert result.returncode == 2 and result.stdout == ""
        assert "--help" in result.stderr
    for arguments in (("--help",), ("inspect", "--help"), ("verify", "-h"), ("--version",)):
        result = shards(*arguments)
        assert result.returncode == 0 and result.stderr == "" and len(result.stdout) > 30
