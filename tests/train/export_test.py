"""Tests of `export` and convert_bin.py: transformers opens what they write, with the same bits."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

PROGRAM = Path(os.environ["JIBOIA_BUILD_DIR"]) / "bin" / "export"
CONVERT_BIN = Path(os.environ["JIBOIA_SOURCE_DIR"]) / "scripts" / "convert_bin.py"
SHAPE = dict(vocab_size=50, hidden_size=24, num_hidden_layers=2, state_size=5, conv_kernel=3, expand=3)


def export(source, output, *arguments, code=0):
    command = [PROGRAM, "--checkpoint", source, "--output", output, *arguments]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout if code == 0 else result.stderr


def save_model(folder, **config):
    """A random model of transformers, saved as transformers does."""
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(**{**SHAPE, **config})).eval()
    model.save_pretrained(folder)
    return model


def load_model(folder, **arguments):
    """A folder as transformers opens it; nothing missing, nothing left over."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **arguments)
    assert not any(info.values()), info
    return model.eval()


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refused_by_convert_bin(*arguments, code=1):
    command = [sys.executable, CONVERT_BIN, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == code, result.stdout + result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == "", result.stderr
    return result.stderr


@pytest.fixture
def source(tmp_path):
    return tmp_path / "a source"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "below" / "the output"


@pytest.mark.parametrize(
    "config",
    [{}, {"tie_word_embeddings": False}, {"use_bias": True, "use_conv_bias": False}],
    ids=["tied", "untied", "biases"],
)
def test_same_model_in_transformers(source, output, config):
    original = save_model(source, **config)
    printed = export(source, output)
    assert f"hf upload USER/NAME {output}" in printed
    assert same_weights(load_model(output), original)
    ours, theirs = AutoConfig.from_pretrained(output).to_dict(), original.config.to_dict()
    for key in MambaConfig().to_dict().keys() - {"_name_or_path", "transformers_version", "architectures"}:
        assert ours[key] == theirs[key], key
    with safe_open(output / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_tokens_that_do_not_exist(source, output):
    save_model(source, bos_token_id=None, eos_token_id=7, pad_token_id=None)
    export(source, output)
    model = load_model(output)
    for config in (model.config, model.generation_config):
        ids = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
        assert ids == (None, 7, None)


def test_bfloat16_keeps_the_recurrence_in_float32(source, output):
    original = save_model(source)
    export(source, output, "--dtype", "bfloat16")
    for name, tensor in load_file(output / "model.safetensors").items():
        is_exact = name.endswith((".A_log", ".D"))
        assert tensor.dtype == (torch.float32 if is_exact else torch.bfloat16), name
        expected = original.state_dict()[name]
        assert torch.equal(tensor, expected if is_exact else expected.bfloat16()), name
    ids = torch.arange(20)[None]
    expected = original(ids, use_cache=False).logits
    logits = load_model(output).float()(ids, use_cache=False).logits
    assert (logits - expected).abs().max() < 0.02 * expected.abs().max()
    assert load_model(output, torch_dtype="auto").dtype == torch.bfloat16
    export(output, source.with_name("again"))  # ours, too, reads mixed dtypes


def test_shards_and_what_replaces_them(source, output):
    original = save_model(source)
    export(source, output, "--max-shard-size", "10KB")
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in output.glob("model-*")}
    assert not (output / "model.safetensors").exists()
    assert same_weights(load_model(output), original)

    again = source.with_name("again")
    export(output, again)
    assert same_weights(load_model(again), original)
    export(source, output)
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    assert same_weights(load_model(output), original)


def test_tokenizer_files_and_model_card(source, output, tmp_path):
    save_model(source)
    (source / "tokenizer.json").write_text('{"model": {}}')
    (source / "tokenizer_config.json").write_text("{}")
    export(source, output)
    assert (output / "tokenizer.json").read_text() == '{"model": {}}'
    assert (output / "tokenizer_config.json").exists()
    card = (output / "README.md").read_text()
    parameters = sum(p.numel() for p in load_model(output).parameters())
    assert "library_name: transformers" in card and str(parameters) in card and "# the output\n" in card

    (tmp_path / "card.md").write_text("# Mine\n")
    export(source, output, "--model-card", tmp_path / "card.md")
    assert (output / "README.md").read_text() == "# Mine\n"


def test_the_model_cards_example_runs_in_the_folder(source, output, monkeypatch, capsys):
    save_model(source)
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "Once": 1, "upon": 2, "a": 3, "time": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(source)
    export(source, output)
    (example,) = re.findall(r"```python\n(.*?)```", (output / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(output)
    # Their own generate() needs a newer torch than distributions have.
    monkeypatch.setattr(MambaForCausalLM, "generate", lambda model, ids, max_new_tokens: ids)
    exec(example, {})
    assert capsys.readouterr().out == "Once upon a time\n"


def test_reads_mamba_ssm(source, output):
    original = save_model(source, vocab_size=56, expand=2, state_size=16, conv_kernel=4)
    tensors = load_file(source / "model.safetensors")
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    tensors["lm_head.weight"] = tensors["backbone.embedding.weight"].clone()
    save_file(tensors, source / "model.safetensors")
    config = {"d_model": 24, "n_layer": 2, "vocab_size": 50, "ssm_cfg": {}, "rms_norm": True}
    (source / "config.json").write_text(json.dumps(config))
    export(source, output)
    assert same_weights(load_model(output), original)


def test_converts_bin_files(source, output):
    original = save_model(source)
    state = original.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["backbone.embeddings.weight"].data_ptr()
    torch.save(state, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    assert "pytorch_model.bin" in export(source, output, code=4)
    subprocess.run([sys.executable, CONVERT_BIN, source], check=True, capture_output=True)
    with safe_open(source / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"} and "lm_head.weight" not in file.keys()
    export(source, output)
    assert same_weights(load_model(output), original)


def test_does_not_run_code_of_bin_files(source, tmp_path):
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "attacked",)

    source.mkdir()
    torch.save({"weight": Attack()}, source / "pytorch_model.bin")
    result = subprocess.run([sys.executable, CONVERT_BIN, source], capture_output=True)
    assert result.returncode != 0
    assert not (tmp_path / "attacked").exists() and not (source / "model.safetensors").exists()


def test_names_a_bin_file_that_is_none(source):
    source.mkdir()
    weights = source / "pytorch_model.bin"
    index = source / "pytorch_model.bin.index.json"
    torch.save([torch.ones(2)], source / "list.bin")
    cases = [(weights, content) for content in (b"", b"garbage", bytes(5000), b"PK\x03\x04" + bytes(99))]
    cases += [(weights, (source / "list.bin").read_bytes())]
    cases += [(index, content) for content in (b"{", b"[]", b"{}", b'{"weight_map": 5}', b"\xff")]
    cases += [(index, b'{"weight_map": %s}' % files) for files in (b"{}", b'{"a": 5}', b'{"a": "b/c"}')]
    for path, content in cases:
        path.write_bytes(content)
        assert str(path) in refused_by_convert_bin(source)
        path.unlink()


@pytest.mark.parametrize(
    "state, message",
    [
        ({}, "holds no tensors"),
        ({5: torch.ones(2)}, "expected the tensors' names as keys, got 5"),
        ({"a": [5]}, "'a' is not a tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "'a' is torch.complex64, expected floats"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is torch.sparse_coo, expected a dense tensor"),
        ({"a": torch.ones(2, device="meta")}, "'a' has no values: it is a tensor of the meta device"),
    ],
    ids=["empty", "key", "list", "complex", "sparse", "meta"],
)
def test_bin_files_that_safetensors_cannot_hold_are_refused(source, state, message):
    source.mkdir()
    torch.save(state, source / "pytorch_model.bin")
    said = refused_by_convert_bin(source)
    assert str(source / "pytorch_model.bin") in said and message in said
    assert [path.name for path in source.iterdir()] == ["pytorch_model.bin"]


def test_convert_bin_overwrites_nothing(source):
    source.mkdir()
    weights = source / "x.bin"
    torch.save({"a": torch.ones(2)}, weights)
    (source / "made.tmp").write_bytes(weights.read_bytes())  # what `made` would be written as
    (source / "model.safetensors").write_text("of a checkpoint")
    (source / "link").symlink_to("nothing")
    before = {path: path.lstat().st_mtime_ns for path in source.iterdir()}
    for output in ("x.bin", "made", "model.safetensors", "link"):
        said = refused_by_convert_bin(weights, source / output, code=2)
        assert f"'{source / output}" in said and "exists; remove it, or choose another" in said
    assert "model.safetensors' exists" in refused_by_convert_bin(weights, code=2)
    assert "cannot write" in refused_by_convert_bin(weights, source / "none" / "made")
    assert before == {path: path.lstat().st_mtime_ns for path in source.iterdir()}


def test_refusals(source, output, tmp_path):
    save_model(source)
    before = (source / "model.safetensors").read_bytes()
    assert "is the model to be exported" in export(source, source, code=2)
    (tmp_path / "link").symlink_to(source)
    assert "is the model to be exported" in export(source, tmp_path / "link", code=2)
    assert (source / "model.safetensors").read_bytes() == before

    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "MANIFEST.json").write_text("{}")
    assert "is a checkpoint" in export(source, tmp_path / "checkpoint", code=2)
    assert "5 apples" in export(source, output, "--max-shard-size", "5 apples", code=2)
    assert "--dtype" in export(source, output, "--dtype", "float64", code=2)
    assert "no such folder" in export(tmp_path / "nothing", output, code=4)
    (tmp_path / "file").write_text("")
    assert "cannot create folder" in export(source, tmp_path / "file", code=7)
    assert not output.exists()

    tensors = load_file(source / "model.safetensors")
    del tensors["backbone.norm_f.weight"]
    tensors["backbone.norm.weight"] = torch.ones(24)
    save_file(tensors, source / "model.safetensors")
    message = export(source, output, code=4)
    assert "backbone.norm_f.weight: is missing" in message
    assert "backbone.norm.weight: is not a part" in message
