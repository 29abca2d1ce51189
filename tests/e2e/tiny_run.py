"""A training run that takes a fraction of a second, for tests of whole runs."""

import json
import os
import shutil

import numpy as np
from programs import run, write_rows, write_yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB, LENGTH, ROWS = 61, 32, 37


def write_data(folder):
    random = np.random.default_rng(7)
    write_rows(folder / "train", random.zipf(1.4, (ROWS, LENGTH)) % VOCAB, VOCAB)
    write_rows(folder / "validation", random.zipf(1.4, (5, LENGTH)) % VOCAB, VOCAB)
    return folder


def add_tokenizer(folder):
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def config_of(data, output, steps=12, every=4, **changes):
    tree = {
        "output_dir": output, "seed": 3, "device": "cpu", "threads": 2,
        "model": {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 5, "use_bias": True},
        "data": {"train": data / "train", "validation": data / "validation", "seq_len": LENGTH},
        "train": {"micro_batch_size": 2, "global_batch_size": 6, "max_steps": steps},
        "optim": {"lr": 3e-3},
        "schedule": {"name": "cosine", "indexing": "open_lm", "warmup_steps": 1, "min_lr": 1e-4},
        "loss": {"z_loss": 1e-3},
        "checkpoint": {"every": every, "keep": 2},
        "eval": {"every": 5},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    return tree


def start(tmp_path, tree, *arguments, code=0, **options):
    return run("train", "--config", write_yaml(tmp_path / "run.yaml", tree), *arguments, code=code, **options)


def metrics_of(output, without=("perf/",)):
    """The lines of metrics.jsonl, by default without what differs from run to run."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(without)} for line in lines]


def tensors_of(output, step):
    """The bytes of a checkpoint's weights and moments."""
    folder = output / "checkpoints" / f"step_{step:08}"
    weights = (folder / "model.safetensors").read_bytes()
    moments = next(folder.glob("optimizer_*.safetensors")).read_bytes()
    # The header of the moments names the run, which is another one.
    return weights, moments[8 + int.from_bytes(moments[:8], "little"):]


def assert_close(ours, wanted, relative):
    assert len(ours) == len(wanted)
    for a, b in zip(ours, wanted):
        assert abs(a - b) <= relative * abs(b), (ours, wanted)


def losses_of(output):
    return [line["train/loss"] for line in metrics_of(output)]


def assert_same_end(output, wanted, steps, without=("perf/",)):
    assert tensors_of(output, steps) == tensors_of(wanted, steps)
    assert metrics_of(output, without) == metrics_of(wanted, without)


def checkpoints_of(output):
    return sorted(p.name for p in (output / "checkpoints").glob("step_*") if ".tmp-" not in p.name)


def copy_until(source, target, step):
    """The folder of a run as it was when it was stopped after `step` steps."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "checkpoints").mkdir(parents=True)
    name = f"checkpoints/step_{step:08}"
    shutil.copytree(source / name, target / name)
    shutil.copy(source / "metrics.jsonl", target / "metrics.jsonl")


def repeats(name, default):
    """How often a test repeats: an environment variable makes it more than what a build server runs."""
    return int(os.environ.get(name, default))
