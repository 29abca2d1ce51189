#!/usr/bin/env python3
"""Times a training step of transformers' MambaForCausalLM on the CPU beside ours, in turn, on the same shape.

Needs PyPI's torch, transformers and mambapy (use_mambapy=True is the fastest that transformers has without a GPU):

    python3 -m venv build-bench/peer && build-bench/peer/bin/pip install torch transformers mambapy
    cmake -S . -B build-bench -G Ninja -DJIBOIA_NATIVE=ON -DJIBOIA_BENCH=ON -DJIBOIA_TESTS=OFF
    cmake --build build-bench --target bench_step
    build-bench/peer/bin/python scripts/bench_cpu_peer.py build-bench/bin/bench_step
"""

import argparse
import re
import statistics
import subprocess
import time


def make_peer_step(arguments):
    import torch
    from transformers import MambaConfig, MambaForCausalLM
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=arguments.vocab_size, hidden_size=arguments.hidden_size,
                                         num_hidden_layers=arguments.layers, use_mambapy=True, use_cache=False)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(0, arguments.vocab_size, (arguments.rows, arguments.seq_len))

    def step():
        optimizer.zero_grad(set_to_none=True)
        logits = model(ids).logits[:, :-1].reshape(-1, arguments.vocab_size)
        lse = torch.logsumexp(logits, -1)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1)) + 1e-4 * lse.square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    print(f"peer: torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"transformers {__import__('transformers').__version__}")
    return step


def time_ours(arguments):
    """One run of our benchmark: (seconds of a step, its table by op)."""
    shape = ["--hidden-size", arguments.hidden_size, "--layers", arguments.layers, "--vocab-size",
             arguments.vocab_size, "--rows", arguments.rows, "--seq-len", arguments.seq_len, "--steps", 5]
    text = subprocess.run([arguments.bench_step, *map(str, shape), "--device", "cpu", "--profile"], check=True,
                          capture_output=True, text=True).stdout
    return float(re.search(r"step ([\d.]+) ms", text)[1]) / 1e3, text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench_step", help="path of our benchmark program")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    step = make_peer_step(arguments)
    step()
    tokens = arguments.rows * arguments.seq_len
    ours, theirs = [], []
    for turn in range(arguments.rounds):
        begin = time.perf_counter()
        step()
        theirs.append(time.perf_counter() - begin)
        seconds, table = time_ours(arguments)
        ours.append(seconds)
        print(f"round {turn + 1}: theirs {theirs[-1]:.2f} s, ours {ours[-1]:.2f} s, ratio {theirs[-1] / ours[-1]:.2f}")
    ratios = [a / b for a, b in zip(theirs, ours)]
    print(f"theirs {tokens / statistics.median(theirs):.0f} tokens/s, ours {tokens / statistics.median(ours):.0f} tokens/s, "
          f"ratio {statistics.median(ratios):.2f} (median; {min(ratios):.2f} to {max(ratios):.2f})")
    print(table)


if __name__ == "__main__":
    main()
