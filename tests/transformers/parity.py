"""What the tests against transformers share: tiny models and their logits."""

import json

import numpy as np
import torch
from programs import run
from safetensors.torch import load_file
from transformers import MambaConfig, MambaForCausalLM

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


def our_logits(folder, ids, scratch, device="cpu"):
    (scratch / "ids.json").write_text(json.dumps(ids))
    run("evaluate", "--model", folder, "--ids", scratch / "ids.json", "--logits", scratch / "logits.safetensors",
        "--device", device)
    return load_file(scratch / "logits.safetensors")["logits"]


def relative_difference(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def model_section(config):
    """The `model` section of our configuration for a MambaConfig."""
    names = ["vocab_size", "hidden_size", "num_hidden_layers", "state_size", "conv_kernel", "expand", "time_step_rank",
             "use_bias", "use_conv_bias", "tie_word_embeddings"]
    return {name: getattr(config, name) for name in names} | {"initialisation": "huggingface_4_39"}
