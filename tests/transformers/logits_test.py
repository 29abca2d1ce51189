"""Logits of the same weights, in our programs and in transformers, in both directions."""

import pytest
import torch
from gpu import require_gpu
from parity import our_logits, random_ids, reference_logits, reference_model, relative_difference
from programs import run
from transformers import MambaForCausalLM

BASE = dict(vocab_size=101, hidden_size=32, num_hidden_layers=2, state_size=16, conv_kernel=4, expand=2)
SHAPES = {
    "base": (BASE, 2, 64),
    "state 5": (BASE | dict(state_size=5), 2, 50),
    "conv 3": (BASE | dict(conv_kernel=3), 2, 33),
    "expand 3": (BASE | dict(expand=3), 1, 40),
    "use_bias": (BASE | dict(use_bias=True), 2, 17),
    "no conv bias": (BASE | dict(use_conv_bias=False), 2, 31),
    "untied": (BASE | dict(tie_word_embeddings=False), 2, 20),
    "rank 7": (BASE | dict(time_step_rank=7, hidden_size=40), 2, 20),
    "one token": (BASE, 3, 1),
    "1000 tokens": (BASE | dict(hidden_size=48), 1, 1000),
    "rescaled": (BASE | dict(rescale_prenorm_residual=True), 2, 20),
    "wide": (dict(vocab_size=2048, hidden_size=160, num_hidden_layers=4), 2, 256),
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", SHAPES)
def test_their_weights_give_our_programs_the_same_logits(name, device, tmp_path):
    if device == "cuda":
        require_gpu()
    config, rows, length = SHAPES[name]
    model = reference_model(**config)
    model.save_pretrained(tmp_path / "theirs")
    ids = random_ids(config["vocab_size"], rows, length)
    difference = relative_difference(our_logits(tmp_path / "theirs", ids, tmp_path, device),
                                     reference_logits(model, ids))
    print(f"{name} on {device}: {difference:.2e}")
    assert difference < 1e-5


@pytest.mark.parametrize("name", SHAPES)
def test_our_export_gives_transformers_the_same_logits(name, tmp_path):
    config, rows, length = SHAPES[name]
    reference_model(**config).save_pretrained(tmp_path / "theirs")
    run("export", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "ours")
    model, report = MambaForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    ids = random_ids(config["vocab_size"], rows, length)
    ours = our_logits(tmp_path / "ours", ids, tmp_path)
    assert relative_difference(ours, reference_logits(model.eval(), ids)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_folders_load(dtype, tmp_path):
    model = reference_model(**BASE).to(dtype)
    model.save_pretrained(tmp_path / "theirs")
    ids = random_ids(BASE["vocab_size"], 2, 30)
    assert relative_difference(our_logits(tmp_path / "theirs", ids, tmp_path),
                               reference_logits(model.float(), ids)) < 1e-5


def test_sharded_folders_load(tmp_path):
    model = reference_model(**BASE)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    ids = random_ids(BASE["vocab_size"], 2, 30)
    assert relative_difference(our_logits(tmp_path / "theirs", ids, tmp_path), reference_logits(model, ids)) < 1e-5
