#!/usr/bin/env python3
"""Measures our kernels and training steps beside mamba_ssm's and causal-conv1d's, on one GPU and in one run.

    scripts/bench_peers.py build-gpu/bin --parts scan conv --json kernels.jsonl
    scripts/bench_peers.py --table kernels.jsonl steps.jsonl

Each part runs ours (bench_ops or bench_step), theirs, and ours again. A row of the table is a case: ours (mean of the two runs'
medians), theirs, how many times better ours is, that ratio with each of our runs, the bar that it is to reach.

Theirs are used as fast as they go unchanged. Kernels: bf16 data in the layout that mamba_ssm gives them, (B, D, L); fp32 A, D, bias
and filters; softplus, skip and gate inside the scan, SiLU inside the convolution. As in bench_ops, 256 MiB are read before each call,
so that the caches hold nothing of use. Steps: MambaLMHeadModel with fused add and norm, mamba_inner_fn in every layer (which is
counted), bf16 autocast over fp32 weights, a compiled loss (cross entropy and 1e-4 z-loss), clipping, fused AdamW; for Mamba-7B
forward and backward alone, weights (but filters) and gradients in bf16 (ours: gradients in fp32). Memory is the most that PyTorch had allocated, of ours all
that was; and what was taken from the GPU, PyTorch's caches included.

Needs torch, mamba_ssm and causal-conv1d (with --transformers also that), and the GPU to itself. A part takes seconds to a minute.
"""

import argparse
import dataclasses
import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["USE_HUB_KERNELS"] = "NO"  # before transformers is imported: the installed kernels, not the hub's

SHAPES = [(32, 1536, 2048), (8, 1536, 2048), (4, 1536, 2048), (8, 8192, 2048), (4, 8192, 2048), (1, 1536, 65536)]  # B, D, L
STATES, WIDTH, Z_LOSS = 16, 4, 1e-4
LARGE, SMALL, LONG = (">= 2.4", ">= 4.4"), (">= 1.6", ">= 3.4"), (">= 1.5", ">= 2.5")
SCAN_BARS = {"(32, 1536)": LARGE, "(8, 8192)": LARGE, "(8, 1536)": SMALL, "(4, 1536)": SMALL, "(1, 1536) L 65536": LONG}
CONVOLUTION_BARS = {f"({B}, {D})": (">= 1", ">= 1") for B, D, L in SHAPES if L == 2048}
MODELS = {"mambarim": (768, 12, 32000), "24-layers": (768, 24, 32000), "mamba7b": (4096, 64, 50432)}  # E, layers, V


@dataclasses.dataclass
class Row:
    """A line of the table. `ratios`: what is compared with `bar`, once for each of our runs."""
    part: str
    name: str
    unit: str
    ours: list
    theirs: float
    ratios: list
    bar: str = ""

    @property
    def ratio(self):
        return statistics.mean(self.ratios)

    @property
    def verdict(self):
        if not self.bar:
            return ""
        relation, limit = self.bar.split()
        met = self.ratio >= float(limit) if relation == ">=" else self.ratio <= float(limit)
        return "met" if met else "MISSED"


def text_of(value):
    if value is None:
        return ""
    for least, decimals in ((1000, 0), (10, 2), (0.1, 3)):
        if value >= least:
            return f"{value:,.{decimals}f}"
    return f"{value:.4f}"


def print_table(rows):
    width = max((len(row.name) for row in rows), default=0)
    print(f"\n{'':{width}} {'ours':>10} {'theirs':>10} {'':9} {'ratio':>8} {'(of each run)':>19}  bar")
    for row in rows:
        spread = f"({text_of(min(row.ratios))} - {text_of(max(row.ratios))})" if len(row.ratios) > 1 else ""
        print(f"{row.name:{width}} {text_of(statistics.mean(row.ours)):>10} {text_of(row.theirs):>10} {row.unit:9} "
              f"{text_of(row.ratio):>8} {spread:>19}  {row.bar:10} {row.verdict}".rstrip())
    missed = sum(row.verdict == "MISSED" for row in rows)
    print(f"{sum(row.verdict == 'met' for row in rows)} bars met, {missed} missed")


# Ours: programs of this project.


def run_ours(options, program, *arguments):
    """The JSON lines that a benchmark program writes."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        command = [options.programs / program, *map(str, arguments), "--json", file.name]
        subprocess.run(command, check=True, timeout=180)
        return [json.loads(line) for line in Path(file.name).read_text(encoding="utf-8").splitlines()]


def our_ops(options, op):
    """name -> ms. Without the large products first that theirs do not have either."""
    lines = run_ours(options, "bench_ops", "--filter", f"{op} ", "--repeats", options.repeats, "--no-ceilings")
    return {line["name"]: line["ms"] for line in lines if "ms" in line}


def our_step(options, model, rows, steps, *arguments):
    return run_ours(options, "bench_step", "--model", model, "--rows", rows, "--steps", steps, *arguments)[0]


# Theirs.


def median_ms(call, warmup, repeats, between=lambda: None):
    """Of `repeats` calls queued one behind the other, each between two events; `between` runs before each, untimed."""
    import torch
    for _ in range(warmup):
        call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        between()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events)


def draw(*shape):
    import torch
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def their_scan(B, D, L):
    """Forward and backward of mamba_ssm's scan. The forward pass saves what the backward pass reads."""
    import selective_scan_cuda
    import torch
    u, z, grad = (draw(B, D, L) for _ in range(3))
    dt, b, c = draw(B, D, L) * 0.5, draw(B, 1, STATES, L), draw(B, 1, STATES, L)
    a = -torch.arange(1, STATES + 1, device="cuda", dtype=torch.float32).repeat(D, 1)
    skip, bias = torch.ones(D, device="cuda"), torch.full((D,), -4.6, device="cuda")  # softplus of it is 0.01
    forward = lambda: selective_scan_cuda.fwd(u, dt, a, b, c, skip, z, bias, True)
    out, saved, _ = forward()
    return forward, lambda: selective_scan_cuda.bwd(u, dt, a, b, c, skip, z, bias, grad, saved, out, None, True, False)


def their_convolution(B, D, L):
    import causal_conv1d_cuda
    import torch
    x, out, grad, grad_x = (draw(B, D, L) for _ in range(4))
    weight, bias = torch.randn(D, WIDTH, device="cuda"), torch.randn(D, device="cuda")
    grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    forward = lambda: causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, None, None, out, None, True)
    return forward, lambda: causal_conv1d_cuda.causal_conv1d_bwd(x, weight, bias, grad, None, None, None, grad_x,
                                                                 grad_weight, grad_bias, None, True)


def their_ops(options, op, make):
    """name -> ms, named as bench_ops does."""
    import torch
    flushed = torch.ones(64 << 20, device="cuda")
    result = {}
    for B, D, L in SHAPES:
        shape = f"({B}, {D})" + ("" if L == 2048 else f" L {L}")
        for which, call in zip(("forward", "backward"), make(B, D, L)):
            result[f"{op} {which} {shape}"] = median_ms(call, 5, options.repeats, flushed.sum)
    return result


def lm_loss(logits, targets):
    """Mean cross entropy and z-loss of (tokens, V) logits, in fp32."""
    logits = logits.float()
    lse = logits.logsumexp(-1)
    picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (lse - picked).mean() + Z_LOSS * lse.square().mean()


def compiled_loss(tokens, vocabulary):
    """lm_loss through torch.compile, compared with itself uncompiled."""
    import torch
    compiled = torch.compile(lm_loss, dynamic=False)
    logits, targets = draw(tokens, vocabulary).requires_grad_(), torch.zeros(tokens, device="cuda", dtype=torch.long)
    loss = compiled(logits, targets)
    loss.backward()
    with torch.no_grad():
        plain = lm_loss(logits, targets)
    if not torch.allclose(loss, plain, rtol=1e-3):
        raise RuntimeError(f"torch.compile makes the loss {loss.item()}, expected {plain.item()}")
    return compiled


def count_calls(module, name):
    """Has calls of module.name counted, those that return something: a list that grows."""
    calls, function = [], getattr(module, name)

    @functools.wraps(function)
    def counted(*arguments, **keywords):
        result = function(*arguments, **keywords)
        if result is not None:
            calls.append(name)
        return result

    setattr(module, name, counted)
    return calls, lambda: setattr(module, name, function)


def make_model(program, model, dtype):
    """A model and the module that calls mamba_inner_fn."""
    E, layers, V = MODELS[model]
    if program == "transformers":
        from transformers import MambaConfig, MambaForCausalLM
        from transformers.models.mamba import modeling_mamba
        config = MambaConfig(vocab_size=V, hidden_size=E, num_hidden_layers=layers, use_cache=False)
        return MambaForCausalLM(config).to("cuda", dtype), modeling_mamba
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    from mamba_ssm.modules import mamba_simple
    from mamba_ssm.ops.triton import layer_norm
    for kernel in (layer_norm._layer_norm_fwd_1pass_kernel, layer_norm._layer_norm_bwd_kernel):
        kernel.cache.clear()  # launch shapes are tuned at the first call and kept for any number of rows: tune again
    config = MambaConfig(d_model=E, n_layer=layers, vocab_size=V, rms_norm=True, residual_in_fp32=True, fused_add_norm=True,
                         tie_embeddings=True)
    network = MambaLMHeadModel(config, device="cuda", dtype=dtype)
    for layer in network.backbone.layers:
        layer.mixer.conv1d.float()  # beside bf16 rows too: builds of causal-conv1d may have no other filters
    return network, mamba_simple


def their_step(options, model, rows, steps, with_optimizer, program="mamba_ssm"):
    """Tokens per second, and GiB allocated and taken."""
    import torch
    torch.manual_seed(0)
    torch.compiler.reset()
    length, (_, layers, vocabulary) = 2048, MODELS[model]
    # transformers widens the logits itself: compiling would spare it little.
    loss_of = compiled_loss(rows * length, vocabulary) if program == "mamba_ssm" else lm_loss
    torch.cuda.empty_cache()
    network, caller = make_model(program, model, torch.float32 if with_optimizer else torch.bfloat16)
    parameters = list(network.train().parameters())
    if with_optimizer:
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.randint(0, vocabulary, (rows, length + 1), device="cuda")
    tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].flatten()

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=with_optimizer):
            logits = network(tokens).logits
        loss_of(logits.flatten(0, 1), targets).backward()
        del logits
        if with_optimizer:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        network.zero_grad(set_to_none=True)

    warmup = 3
    calls, stop_counting = count_calls(caller, "mamba_inner_fn")
    try:
        ms = median_ms(step, warmup, steps)
    finally:
        stop_counting()
    if len(calls) != layers * (warmup + steps):
        raise RuntimeError(f"{program} ran mamba_inner_fn {len(calls)} times, expected {layers * (warmup + steps)}")
    gib = 2.0**30
    return {"tokens_per_second": rows * length / ms * 1e3, "ms": ms, "allocated_gib": torch.cuda.max_memory_allocated() / gib,
            "taken_gib": torch.cuda.max_memory_reserved() / gib}


def free_their_memory():
    import torch
    gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.memory_reserved() > 1 << 30:
        print(f"PyTorch still holds {torch.cuda.memory_reserved() / 2**30:.1f} GiB", file=sys.stderr)


# Parts: each gives its rows.


def in_turn(ours, theirs):
    first, their_figures = ours(), theirs()
    free_their_memory()
    import torch
    print(f"theirs, {torch.cuda.get_device_name()}, torch {torch.__version__}: {json.dumps(their_figures)}", flush=True)
    return [first, ours()], their_figures


def measure_ops(op, make, bars, options):
    ours, theirs = in_turn(lambda: our_ops(options, op), lambda: their_ops(options, op, make))
    rows = []
    for name, ms in theirs.items():
        which, shape = name.removeprefix(op + " ").split(" ", 1)
        bar = bars.get(shape, ("", ""))[which == "backward"]
        each = [run[name] for run in ours]
        rows.append(Row(op, name, "ms", each, ms, [ms / mine for mine in each], bar))
    return rows


def measure_step(model, their_rows, steps, bar, options, with_optimizer=True):
    what = f"{model}, {their_rows} rows" + ("" if with_optimizer else ", no optimizer")
    arguments = [] if with_optimizer else ["--no-optimizer"]
    ours, theirs = in_turn(lambda: our_step(options, model, their_rows, steps, *arguments),
                           lambda: their_step(options, model, their_rows, steps, with_optimizer))
    speeds = [run["tokens_per_second"] for run in ours]
    rows = [Row(model, what, "tokens/s", speeds, theirs["tokens_per_second"],
                [mine / theirs["tokens_per_second"] for mine in speeds], bar)]
    for key, name in (("allocated_gib", "memory allocated"), ("taken_gib", "memory taken from the GPU")):
        each = [run[key] for run in ours]
        rows.append(Row(model, f"{what}: {name}", "GiB", each, theirs[key], [mine / theirs[key] for mine in each]))
    if options.transformers and with_optimizer:
        others = their_step(options, model, their_rows, steps, with_optimizer, "transformers")
        free_their_memory()
        rows.append(Row(model, f"{what}: transformers", "tokens/s", speeds, others["tokens_per_second"],
                        [mine / others["tokens_per_second"] for mine in speeds]))
    return rows, theirs


def measure_step32(options):
    speed, memory = ">= 2", "<= 0.8"  # to be met by one level of recompute, both
    rows, theirs = measure_step("mambarim", 32, 20, speed, options)
    rows[1].bar = memory
    for recompute, bars in (("selective", (speed, memory)), ("block", ("", "<= 0.4"))):
        runs = [our_step(options, "mambarim", 32, 20, "--recompute", recompute) for _ in range(2)]
        for key, what, unit, bar in (("tokens_per_second", "", "tokens/s", bars[0]),
                                     ("allocated_gib", ": memory allocated", "GiB", bars[1])):
            each = [run[key] for run in runs]
            rows.append(Row("mambarim", f"mambarim, 32 rows, {recompute} recompute{what}", unit, each, theirs[key],
                            [mine / theirs[key] for mine in each], bar))
    return rows


def measure_step4(options):
    rows, _ = measure_step("mambarim", 4, 40, ">= 2", options)
    rows.append(Row("mambarim", "mambarim, 4 rows: tokens/s", "tokens/s", rows[0].ours, None, rows[0].ours, ">= 490000"))
    return rows


def measure_documents(options):
    """What resets at document starts cost us: time with them over time without, in two turns."""
    plain, reset = [], []
    for _ in range(2):
        plain.append(our_step(options, "mambarim", 32, 20)["ms"])
        reset.append(our_step(options, "mambarim", 32, 20, "--document-length", 500)["ms"])
    ratios = [with_them / without for with_them, without in zip(reset, plain)]
    return [Row("documents", "mambarim, 32 rows, documents of 500 / none", "ms", reset, None, ratios, "<= 1.02")]


PARTS = {
    "scan": functools.partial(measure_ops, "selective_scan", their_scan, SCAN_BARS),
    "conv": functools.partial(measure_ops, "causal_conv1d", their_convolution, CONVOLUTION_BARS),
    "step32": measure_step32,
    "step4": measure_step4,
    "step24": lambda options: measure_step("24-layers", 32, 10, ">= 2.1", options)[0],
    "7b": lambda options: measure_step("mamba7b", 4, 5, ">= 1.3", options, with_optimizer=False)[0],
    "documents": measure_documents,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="?", type=Path, help="folder of bench_ops and bench_step")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(default: all)")
    parser.add_argument("--repeats", type=int, default=20, help="of kernels (default: %(default)s)")
    parser.add_argument("--transformers", action="store_true", help="also MambaForCausalLM on the same kernels")
    parser.add_argument("--json", type=Path, help="file for the rows, a JSON object a line")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="only print the table of earlier --json files")
    options = parser.parse_args()
    if options.table:
        lines = [line for path in options.table for line in path.read_text(encoding="utf-8").splitlines()]
        print_table([Row(**json.loads(line)) for line in lines])
        return 0
    if not options.programs:
        parser.error("the folder of the programs is missing")
    rows, failed = [], []
    with open(options.json or os.devnull, "w", encoding="utf-8") as file:
        for part in options.parts:
            begin = time.perf_counter()
            try:
                new = PARTS[part](options)
            except Exception:  # of any library: the other parts are worth having
                traceback.print_exc()
                failed.append(part)
                new = []
            if part in failed and "torch" in sys.modules:
                free_their_memory()  # which the error held until here
            rows += new
            file.writelines(json.dumps(dataclasses.asdict(row)) + "\n" for row in new)
            file.flush()
            print(f"== {part}: {time.perf_counter() - begin:.0f} s", flush=True)
    print_table(rows)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
