"""What the tests against transformers share: programs, tiny models, data."""

import json
import os
import pathlib
import subprocess

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import MambaConfig, MambaForCausalLM

BIN = pathlib.Path(os.environ["JIBOIA_BUILD_DIR"]) / "bin"
SOURCE = pathlib.Path(os.environ["JIBOIA_SOURCE_DIR"])


def run(program, *arguments, code=0):
    """Runs one of our programs and returns what it printed."""
    result = subprocess.run([str(BIN / program), *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == code, f"{program} exited {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stdout


def reference_model(seed=0, **config):
    """A randomly initialised MambaForCausalLM whose every parameter matters."""
    torch.manual_seed(seed)
    model = MambaForCausalLM(MambaConfig(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def random_ids(vocab_size, rows, length, seed=1):
    return np.random.default_rng(seed).integers(0, vocab_size, (rows, length)).tolist()


def reference_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids), use_cache=False).logits.float()


def our_logits(folder, ids, scratch):
    (scratch / "ids.json").write_text(json.dumps(ids))
    run("evaluate", "--model", folder, "--ids", scratch / "ids.json", "--logits", scratch / "logits.safetensors")
    return load_file(scratch / "logits.safetensors")["logits"]


def relative_difference(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def write_yaml(path, tree):
    """Writes a configuration of two levels."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"  {k}: {scalar(v)}" for k, v in value.items()]
        else:
            lines.append(f"{key}: {scalar(value)}")
    path.write_text("\n".join(lines) + "\n")


def scalar(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, pathlib.Path):
        return f'"{value}"'
    return str(value)


def model_section(config):
    """The `model` section of our configuration for a MambaConfig."""
    names = ["vocab_size", "hidden_size", "num_hidden_layers", "state_size", "conv_kernel", "expand", "time_step_rank",
             "use_bias", "use_conv_bias", "tie_word_embeddings"]
    return {name: getattr(config, name) for name in names} | {"initialisation": "huggingface_4_39"}
