"""Text from a GPU: samples while it trains, and generation after, are those of the CPU."""

import json
import re
import shutil

import numpy as np
import pytest
from gpu import require_gpu
from programs import run, write_rows
from tiny_run import LENGTH, add_tokenizer, assert_close, config_of, losses_of, start

VOCAB, STEPS = 256, 60
TEXT = "one two three four five six seven eight nine ten "


@pytest.fixture(scope="module", autouse=True)
def gpu():
    return require_gpu()


def samples_of(said):
    return [json.loads(text) for text in re.findall(r"sample: (\".*\")", said)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs on both devices that learn a text, with the samples that they showed."""
    root = tmp_path_factory.mktemp("text")
    tokens = add_tokenizer(root).encode(TEXT).ids
    rows = np.array([[tokens[(row * 5 + i) % len(tokens)] for i in range(LENGTH)] for row in range(40)])
    write_rows(root / "data/train", rows, VOCAB)
    write_rows(root / "data/validation", rows[:3], VOCAB)
    shutil.copy(root / "tokenizer.json", root / "data/train")

    def train(name, device, precision, steps):
        tree = config_of(root / "data", root / name, steps, every=0, device=device, precision=precision,
                         model__vocab_size=VOCAB, model__hidden_size=32, optim__lr=2e-2, eval__every=steps // 2,
                         eval__sample_prompt="one two thr", eval__sample_tokens=20)
        return samples_of(start(root, tree).stderr)
    return root, {name: train(name, *how) for name, how in {
        "cpu": ("cpu", "fp32", STEPS), "cuda": ("cuda", "fp32", STEPS), "rough": ("cuda", "bf16", STEPS)}.items()}


def test_cuda_training_shows_the_samples_of_the_cpu(trained):
    root, samples = trained
    assert samples["cuda"] == samples["cpu"]
    for shown in samples.values():
        assert len(shown) == 2 and all(text.startswith("one two thr") and len(text) > 11 for text in shown)
    assert_close(losses_of(root / "cuda"), losses_of(root / "cpu"), 1e-3)
    assert losses_of(root / "rough")[-1] < 0.5 * losses_of(root / "rough")[0]


# Pieces of a prompt are at most 128 tokens; the convolution looks back 3.
@pytest.mark.parametrize("length", [1, 2, 3, 5, 129, 130, 300])
def test_cuda_generates_the_text_of_the_cpu(length, trained):
    root, _ = trained
    prompt = (TEXT * 7)[:length]

    def text(device, *options):
        return run("generate", "--model", root / "cpu", "--prompt", prompt, "-n", 40, "--ignore-end", "--device", device,
                   *options).stdout
    greedy = text("cpu", "--temperature", 0)
    assert greedy.startswith(prompt) and len(greedy) > length + 20
    assert text("cuda", "--temperature", 0) == greedy
    assert text("cuda", "--seed", 4) == text("cpu", "--seed", 4)
    rough = text("cuda", "--temperature", 0, "--precision", "bf16")
    assert rough.startswith(prompt) and len(rough) > length + 20
    assert rough == text("cuda", "--temperature", 0, "--precision", "bf16")
