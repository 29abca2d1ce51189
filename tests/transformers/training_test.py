"""Fifty steps of training beside PyTorch and transformers: same weights, same batches, same recipe."""

import json
import math

import numpy as np
import pytest
import torch
from gpu import require_gpu
from jiboia_data.row_order import permuted_row
from parity import model_section, reference_model
from programs import run, write_rows, write_yaml
from safetensors.torch import load_file

STEPS, ROWS, LENGTH, VOCAB = 50, 23, 48, 67
MICRO, GLOBAL = 2, 4
LR, WARMUP, MIN_LR, CLIP, DECAY, Z_LOSS = 3e-3, 5, 0.0, 0.7, 0.1, 1e-3
SEED = 11


def learning_rate(step):
    if step < WARMUP:
        return LR * step / WARMUP
    return LR * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def train_reference(model, rows):
    """The same recipe in PyTorch; returns the loss of every step."""
    decayed = [p for n, p in model.named_parameters()
               if p.ndim >= 2 and not n.endswith("A_log")]
    others = [p for p in model.parameters() if not any(p is q for q in decayed)]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": DECAY},
                                   {"params": others, "weight_decay": 0.0}], lr=LR, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        positions = range(step * GLOBAL, (step + 1) * GLOBAL)
        chosen = [permuted_row(SEED, p // ROWS, p % ROWS, ROWS) for p in positions]
        total = 0.0
        for first in range(0, GLOBAL, MICRO):
            ids = torch.tensor(rows[chosen[first:first + MICRO]], dtype=torch.long)
            logits = model(ids, use_cache=False).logits
            cross_entropy = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
            loss = cross_entropy + Z_LOSS * torch.logsumexp(logits, -1).square().mean()
            (loss * MICRO / GLOBAL).backward()
            total += loss.item() * MICRO / GLOBAL
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


@pytest.mark.parametrize("shape", [dict(), dict(use_bias=True, tie_word_embeddings=False, state_size=5)],
                         ids=["tied", "untied"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fifty_steps_equal_pytorch(shape, device, tmp_path):
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
        "schedule": {"name": "cosine", "indexing": "huggingface", "warmup_steps": WARMUP, "min_lr": MIN_LR},
        "loss": {"z_loss": Z_LOSS},
        "checkpoint": {"every": 0, "keep": 1},
    })
    run("train", "--config", tmp_path / "run.yaml")
    ours = [json.loads(line)["train/loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    theirs = train_reference(model.train(), rows)
    assert len(ours) == STEPS
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs))

    weights = load_file(tmp_path / f"run/checkpoints/step_{STEPS:08}/model.safetensors")
    state = model.state_dict()
    square = lambda tensors: sum(t.double().square().sum() for t in tensors)
    distance = math.sqrt(square(weights[n] - state[n] for n in weights) / square(state[n] for n in weights))
    print(f"largest loss difference {worst:.2e}, final weights {distance:.2e}, loss {theirs[0]:.3f} -> {theirs[-1]:.3f}")
    assert theirs[-1] < theirs[0] - 0.3, "the reference must have learnt something"
    assert worst < 1e-4
    assert distance < 1e-3
