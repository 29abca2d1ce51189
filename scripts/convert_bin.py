#!/usr/bin/env python3
"""Converts a model's pytorch_model.bin, or its shards, to model.safetensors.

usage: convert_bin.py INPUT [OUTPUT]

INPUT   a .bin file, or a folder with pytorch_model.bin or pytorch_model.bin.index.json
OUTPUT  the file to write, which must not exist (default: model.safetensors beside the input)

The file is loaded without running any code in it (torch.load(weights_only=True)). Of tensors that
share their memory, as a head tied to its embedding does, the first one is kept. Needs torch and
safetensors.

Exit codes: 0 done, 1 no file could be made, 2 usage.
"""

import json
import os
import sys
from pathlib import Path


def fail(message, code=1):
    print(f"convert_bin.py: {message}", file=sys.stderr)
    sys.exit(code)


def first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def find_files(source):
    """The .bin files that INPUT stands for."""
    if source.is_file():
        return [source]
    single, index = source / "pytorch_model.bin", source / "pytorch_model.bin.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        fail(f"'{source}' has neither {single.name} nor {index.name}")
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        fail(f"'{index}' is not an index of weights: {first_line(error)}")
    if not names:
        fail(f"'{index}' names no file: its weight_map is empty")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            fail(f"'{index}' names '{name}', which is not a file of this folder")
    return [source / name for name in sorted(names)]


def check_is_plain(file, name, tensor):
    """That safetensors can hold it: values in memory, of a type it has, under a text."""
    import torch

    if not isinstance(name, str):
        fail(f"'{file}': expected the tensors' names as keys, got {name!r:.60}")
    if not isinstance(tensor, torch.Tensor):
        fail(f"'{file}': '{name}' is not a tensor; is this a training state?")
    if tensor.device.type != "cpu":
        fail(f"'{file}': '{name}' has no values: it is a tensor of the {tensor.device} device")
    if tensor.layout != torch.strided:
        fail(f"'{file}': '{name}' is {tensor.layout}, expected a dense tensor")
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if tensor.dtype not in (*integers, *floats):
        fail(f"'{file}': '{name}' is {tensor.dtype}, expected floats, integers or bool")


def load_tensors(files):
    """All tensors of the files by name, contiguous, none sharing memory with another."""
    import torch

    tensors, owners = {}, {}
    for file in files:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of any class: it depends on what the file is instead
            fail(f"cannot load '{file}': {first_line(error)}")
        if not isinstance(loaded, dict):
            fail(f"'{file}' holds no dictionary of tensors")
        for name, tensor in loaded.items():
            check_is_plain(file, name, tensor)
            if name in tensors:
                fail(f"'{file}': '{name}' is also in another shard")
            view = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if tensor.numel() > 0 and view in owners:
                print(f"left out: {name}, the same tensor as {owners[view]}")
                continue
            owners[view] = name
            tensors[name] = tensor
    if not tensors:
        fail(f"'{files[0]}' holds no tensors")
    for name in tensors:  # one by one, so that each original is freed before the next copy
        tensors[name] = tensors[name].detach().contiguous().clone()
    return tensors


def main():
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(__doc__.strip())
        return
    if len(arguments) not in (1, 2):
        fail(f"expected INPUT [OUTPUT], got {len(arguments)} arguments; see --help", 2)
    from safetensors.torch import save_file

    files = find_files(Path(arguments[0]))
    output = Path(arguments[1]) if len(arguments) == 2 else files[0].parent / "model.safetensors"
    if output.name == "":
        fail(f"OUTPUT '{output}' is a folder, expected the file to write", 2)
    temporary = output.with_name(output.name + ".tmp")
    for path in (output, temporary):
        if os.path.lexists(path):
            fail(f"'{path}' exists; remove it, or choose another OUTPUT", 2)
    tensors = load_tensors(files)
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, output)
    except Exception as error:  # safetensors has no classes of its own for what a disk refuses
        temporary.unlink(missing_ok=True)
        fail(f"cannot write '{output}': {first_line(error)}")
    print(f"wrote {len(tensors)} tensors to {output}")


if __name__ == "__main__":
    main()
