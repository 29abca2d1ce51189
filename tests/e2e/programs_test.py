"""Tests of the programs at the edges of the system: streams, limits, command lines, paths."""

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
from programs import BIN, SOURCE, run, write_yaml
from tiny_run import add_tokenizer, config_of, start, write_data


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with data/, a run and model/: the run's weights with a tokenizer."""
    root = tmp_path_factory.mktemp("programs")
    start(root, config_of(write_data(root / "data"), root / "run", steps=2, every=2, model__vocab_size=256))
    run("export", "--checkpoint", root / "run", "--output", root / "model")
    add_tokenizer(root / "model")
    (root / "ids.json").write_text("[[1, 2, 3]]")
    return root


def commands(world):
    return [
        ["evaluate", "--model", world / "model", "--data", world / "data/validation", "--json"],
        ["generate", "--model", world / "model", "--prompt", "abc", "-n", "3"],
        ["shards", "inspect", world / "data/train"],
        ["shards", "verify", world / "data/train"],
        ["export", "--checkpoint", world / "run", "--output", world / "again"],
        ["train", "--config", world / "run.yaml", "--print-config"],
        *[[program, flag] for program in ("train", "generate") for flag in ("--help", "--version")],
    ]


def test_lost_output_is_an_error(world):
    for program, *arguments in commands(world):
        with open("/dev/full", "w") as full:
            command = [str(BIN / program), *map(str, arguments)]
            result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert result.returncode == 7, (command, result.stderr)
        assert "cannot write to standard output" in result.stderr, command


def test_a_closed_output_is_an_error(world):
    for program, *arguments in commands(world):
        said = run(program, *arguments, code=7, preexec_fn=lambda: os.close(1)).stderr
        assert "cannot write to standard output" in said, (program, arguments, said)


@pytest.mark.parametrize("prompt", [b"abc\xff", b"abc\xe2\x82", b"abc\xed\xa0\x80"])
def test_prompts_are_utf_8(prompt, world):
    arguments = [BIN / "generate", "--model", world / "model", "--prompt", prompt]
    result = subprocess.run(arguments, capture_output=True)
    assert result.returncode == 2 and b"not UTF-8 from byte 3 on" in result.stderr, result


def test_generate_stops_when_its_reader_has_gone(world):
    command = [BIN / "generate", "--model", world / "model", "--prompt", "abc", "-n", str(10**9), "--ignore-end"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(4)[:3] == b"abc"
        process.stdout.close()
        try:
            assert process.wait(timeout=60) == 0, process.stderr.read()
        finally:
            process.kill()


def test_file_size_limit(world, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # noqa: E731
    result = run("export", "--checkpoint", world / "run", "--output", tmp_path / "out", code=7, preexec_fn=limit)
    assert "File too large" in result.stderr


@pytest.mark.parametrize("arguments", [
    "generate --temperature nan", "generate --top-p nan", "generate --top-p 1.5", "generate --seed -1",
    "generate --seed 99999999999999999999", "generate -n 99999999999999999999", "generate -n -1",
    "generate -n 010x", "generate --threads -1", "evaluate --seq-len 99999999999999999999",
    "evaluate --seq-len 0", "evaluate --max-rows -1",
])
def test_numbers_of_command_lines(arguments):
    program, option, value = arguments.split()
    message = run(program, "--model", "unused", option, value, code=2).stderr
    assert f"'{value}' is not a " in message and len(message) < 200


def test_decimal_numbers(world):
    def sample(seed):
        return run("generate", "--model", world / "model", "-p", "a", "-n", "40", "--seed", seed).stdout
    assert sample("010") == sample("10") != sample("8")
    sample(2**64 - 1)


def test_paths_that_are_no_models(world, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    weights = world / "model/model.safetensors"
    for path, words in [(tmp_path / "none", "no such folder"), ("", "no such folder"),
                        (empty, "has no config.json"), (weights, "is no folder")]:
        assert words in run("evaluate", "--model", path, "--data", "unused", code=4).stderr
        assert words in run("generate", "--model", path, code=4).stderr
        assert words in run("export", "--checkpoint", path, "--output", tmp_path / "out", code=4).stderr
    assert "has no tokenizer.json" in run("generate", "--model", world / "run", code=3).stderr
    missing = ["--ids", tmp_path / "none", "--logits", tmp_path / "logits"]
    assert "no such file" in run("evaluate", "--model", world / "model", *missing, code=3).stderr


def test_a_stream_without_a_row_is_refused(world, tmp_path):
    add_tokenizer(tmp_path)
    (tmp_path / "text.txt").write_text("a")
    subprocess.run([sys.executable, SOURCE / "scripts/prepare_data.py", "text", tmp_path / "text.txt", "--separator",
                    "none", "--tokenizer", tmp_path / "tokenizer.json", "--output", tmp_path / "one"], check=True)
    for row in [[], ["--seq-len", "1"]]:
        said = run("evaluate", "--model", world / "model", "--data", tmp_path / "one", *row, code=3).stderr
        assert "1 tokens do not fill one row of seq_len 1" in said, said


def test_a_run_in_progress_can_be_read(world, tmp_path):
    """What is chosen may go away meanwhile: then the programs say so, and nothing is half read."""
    data = shutil.copytree(world / "data", tmp_path / "data")
    add_tokenizer(data / "train")
    tree = config_of(data, tmp_path / "run", steps=10**6, every=1, model__vocab_size=256, checkpoint__keep=1)
    command = [BIN / "train", "--config", write_yaml(tmp_path / "run.yaml", tree)]
    latest, output = tmp_path / "run/checkpoints/latest", tmp_path / "exported"
    whole = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not latest.exists():
                assert process.poll() is None
            for model in [tmp_path / "run", latest] * 30:
                for arguments in [["export", "--checkpoint", model, "--output", output],
                                  ["generate", "--model", model, "--prompt", "abc", "-n", "3"],
                                  ["evaluate", "--model", model, "--data", data / "validation"]]:
                    result = subprocess.run([BIN / arguments[0], *arguments[1:]], capture_output=True, text=True)
                    gone = "was removed while it was read" in result.stderr
                    assert result.returncode == (4 if gone else 0), (arguments, result.stderr)
                    assert "damaged" not in result.stderr, result.stderr
                    whole += not gone
                    if arguments[0] == "export":
                        assert (output / "tokenizer.json").exists() is not gone, result.stdout
                        shutil.rmtree(output, ignore_errors=True)
            assert process.poll() is None
        finally:
            process.kill()
    assert whole > 0


def test_logits_replace_only_results(world, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    checkpoint = next((world / "run/checkpoints").glob("step_*"))
    before = (world / "model/model.safetensors").read_bytes()
    for path in ["/dev/null", tmp_path / "fifo", tmp_path, world / "ids.json",
                 world / "model/model.safetensors", checkpoint / "logits"]:
        run("evaluate", "--model", world / "model", "--ids", world / "ids.json", "--logits", path, code=2)
    assert (world / "model/model.safetensors").read_bytes() == before
    assert (world / "ids.json").read_text() == "[[1, 2, 3]]"
    for _ in range(2):
        run("evaluate", "--model", world / "model", "--ids", world / "ids.json", "--logits", tmp_path / "logits")


def test_paths_that_are_no_utf8(world, tmp_path):
    folder = os.fsencode(tmp_path) + b"/d\xff"
    shutil.copytree(os.fsencode(world / "data/train"), folder)
    result = subprocess.run([BIN / "shards", "inspect", folder, "--json"], capture_output=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["folder"].endswith("d\ufffd")


def test_export_over_an_export(world, tmp_path):
    output = tmp_path / "name"
    run("export", "--checkpoint", world / "model", "--output", f"{output}/")
    assert "\n# name\n" in (output / "README.md").read_text()
    assert (output / "tokenizer.json").exists()
    run("export", "--checkpoint", world / "run", "--output", output)
    assert not (output / "tokenizer.json").exists()
    assert "checkpoints" in run("export", "--checkpoint", world / "model", "--output", world / "run", code=2).stderr
    assert not (world / "run/config.json").exists()


def test_export_spares_what_no_export_wrote(world, tmp_path):
    """A folder with files of other makers under the names that an export writes stays as it is."""
    shards = tmp_path / "shards"
    shutil.copytree(world / "data/train", shards)
    folders = {shards: "holds token shards"}
    for name in ["README.md", "tokenizer.json", "merges.txt", "model.safetensors", "generation_config.json",
                 "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"]:
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).write_text("mine")
        folders[folder] = f"its {name} would be lost"
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    for folder, words in folders.items():
        before = {path: path.read_bytes() for path in folder.iterdir()}
        assert words in run("export", "--checkpoint", world / "model", "--output", folder, code=2).stderr
        assert {path: path.read_bytes() for path in folder.iterdir()} == before

    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    for _ in range(2):
        run("export", "--checkpoint", world / "model", "--output", output)
    assert (output / "notes.txt").read_text() == "mine"
    assert not (output / ".unfinished_export").exists()


def test_export_that_fails_leaves_no_weights_and_can_be_repeated(world, tmp_path):
    command = ["export", "--checkpoint", world / "run", "--max-shard-size", "4KB", "--output"]
    run(*command, tmp_path / "whole")
    last = max(path.name for path in (tmp_path / "whole").glob("model-*"))
    output = tmp_path / "out"
    (output / f"{last}.tmp").mkdir(parents=True)  # so that the last of the weights cannot be written
    assert "cannot create" in run(*command, output, code=7).stderr
    (output / f"{last}.tmp").rmdir()
    assert [path.name for path in output.iterdir()] == [".unfinished_export"]
    (output / "model-00001-of-00009.safetensors").write_text("of an export that was killed")
    run(*command, output)
    for folder in (output, tmp_path / "whole"):
        (folder / "README.md").unlink()  # it has the folder's name
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}


def test_no_mixture_of_two_exports(world, tmp_path):
    """Weights that cannot be written leave no configuration of another model beside them."""
    output = tmp_path / "out"
    run("export", "--checkpoint", world / "model", "--output", output)
    old = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps({**old, "hidden_size": 99}))
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # noqa: E731
    run("export", "--checkpoint", world / "run", "--output", output, code=7, preexec_fn=limit)
    assert not (output / "config.json").exists()
