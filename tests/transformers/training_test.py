"""Fifty steps of training beside PyTorch and transformers: same weights, same batches, same recipe."""

import math

import compare_training
import numpy as np
import pytest
from gpu import require_gpu
from parity import model_section, reference_model
from programs import run, write_rows, write_yaml
from safetensors.torch import load_file

STEPS, ROWS, LENGTH, VOCAB = 50, 23, 48, 67
MICRO, GLOBAL = 2, 4
LR, CLIP, DECAY, Z_LOSS = 3e-3, 0.7, 0.1, 1e-3
SEED = 11
COSINE = {"name": "cosine", "indexing": "huggingface", "warmup_steps": 5, "min_lr": 0.0}
WSD = {"name": "wsd", "indexing": "open_lm", "warmup_steps": 4, "cooldown_steps": 20, "min_lr": 1e-4}


@pytest.mark.parametrize("shape, schedule", [
    (dict(), COSINE),
    (dict(use_bias=True, tie_word_embeddings=False, state_size=5), WSD),
], ids=["tied, cosine", "untied, wsd"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fifty_steps_equal_pytorch(shape, schedule, device, tmp_path):
    if device == "cuda":
        require_gpu()
    rows = np.random.default_rng(3).zipf(1.3, (ROWS, LENGTH)) % VOCAB
    write_rows(tmp_path / "data" / "train", rows, VOCAB)
    model = reference_model(seed=5, vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, initializer_range=0.1, **shape)
    model.save_pretrained(tmp_path / "start")
    write_yaml(tmp_path / "run.yaml", {
        "output_dir": tmp_path / "run", "seed": SEED, "device": device, "init_from": tmp_path / "start",
        "model": model_section(model.config),
        "data": {"train": tmp_path / "data" / "train", "seq_len": LENGTH},
        "train": {"micro_batch_size": MICRO, "global_batch_size": GLOBAL, "max_steps": STEPS},
        "optim": {"lr": LR, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": DECAY, "grad_clip": CLIP},
        "schedule": schedule,
        "loss": {"z_loss": Z_LOSS},
        "checkpoint": {"every": 0, "keep": 1},
    })
    run("train", "--config", tmp_path / "run.yaml")
    ours = compare_training.read_lines(tmp_path / "run/metrics.jsonl")
    model = compare_training.load_model(tmp_path / "start", "cpu")
    with open(tmp_path / "peer_metrics.jsonl", "w", encoding="utf-8") as log:
        theirs = compare_training.train_peer(compare_training.read_yaml(tmp_path / "run/resolved_config.yaml"), model,
                                             compare_training.Rows(tmp_path / "data/train", LENGTH), STEPS, log)
    assert len(ours) == STEPS
    difference = lambda key: max(abs(a[key] / b[key] - 1) for a, b in zip(ours, theirs))
    worst = difference("train/loss")

    weights = load_file(tmp_path / f"run/checkpoints/step_{STEPS:08}/model.safetensors")
    state = model.state_dict()
    square = lambda tensors: sum(t.double().square().sum() for t in tensors)
    distance = math.sqrt(square(weights[n] - state[n] for n in weights) / square(state[n] for n in weights))
    first, end = (theirs[i]["train/loss"] for i in (0, -1))
    print(f"largest loss difference {worst:.2e}, final weights {distance:.2e}, loss {first:.3f} -> {end:.3f}")
    assert end < first - 0.3, "the reference must have learnt something"
    assert worst < 1e-4
    assert difference("train/grad_norm") < 1e-3
    assert [line["train/lr"] for line in ours] == pytest.approx([line["train/lr"] for line in theirs])
    assert distance < 1e-3
