#!/usr/bin/env python3
"""Times mamba_ssm and causal-conv1d on a GPU: a whole training step of Mambarim's model, and the two kernels alone.

    scripts/bench_gpu_peer.py --output peer.jsonl [--ours ours.jsonl]

A step is forward, loss (cross entropy and 1e-4 z-loss), backward, clipping and fused AdamW, on random tokens, under
bf16 autocast with fp32 weights: as fast as these libraries go without changing them. `mamba_ssm` is its own
MambaLMHeadModel with fused add and norm, and a compiled loss; `transformers` is MambaForCausalLM on the same kernels.
Every figure is the median of --repeats after --warmup, by CUDA events. --output and --ours hold one JSON object a line,
{"name": ..., "value": ...}; what --ours names like a line of the table, without the program, stands beside it with how
many times better it is. Run it on an idle GPU. Needs torch, transformers, mamba_ssm and causal-conv1d.
"""

import argparse
import gc
import json
import os
import statistics
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["USE_HUB_KERNELS"] = "NO"  # before transformers is imported: the installed kernels, not the hub's

import torch  # noqa: E402

SCANS = [(32, 1536), (8, 1536), (4, 1536), (8, 8192)]  # (B, D); L = --seq-len, N = 16
CONVOLUTIONS = [(32, 1536), (8, 1536), (4, 1536), (8, 8192)]
Z_LOSS = 1e-4
PROGRAMS = ["mamba_ssm", "transformers"]


class Report:
    """Collects the measurements: a JSON line each as they come, a table at the end."""

    def __init__(self, path):
        self.values, self.file = {}, open(path or os.devnull, "w", encoding="utf-8")

    def add(self, name, value):
        self.values[name] = value
        line = json.dumps({"name": name, "value": value})
        print(line, flush=True)
        print(line, file=self.file, flush=True)

    def table(self, ours):
        print(f"\n{'':52} {'peer':>12} {'ours':>12} {'better':>8}")
        used = set()
        for name, value in self.values.items():
            key = name.split("/", 1)[1] if name.split("/")[0] in PROGRAMS else name
            beside = ""
            if key in ours:
                used.add(key)
                better = ours[key] / value if key.endswith("tokens_per_second") else value / ours[key]
                beside = f" {ours[key]:12.3f} {better:7.2f}x"
            print(f"{name:52} {value:12.3f}{beside}")
        for name in sorted(set(ours) - used):
            print(f"{name:52} {'':12} {ours[name]:12.3f}")


def read_values(path):
    """name -> value, from one JSON object or from lines of {"name", "value"}."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
        if "name" not in whole:
            return whole
    except json.JSONDecodeError:
        pass
    return {line["name"]: line["value"] for line in map(json.loads, text.splitlines()) if line}


def median_ms(call, warmup, repeats):
    """Between events in one stream, the calls queued one behind the other."""
    for _ in range(warmup):
        call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(events, events[1:]))


def lm_loss(logits, targets):
    """Mean cross entropy and z-loss of (rows, V) logits, in fp32."""
    logits = logits.float()
    lse = torch.logsumexp(logits, -1)
    picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (lse - picked).mean() + Z_LOSS * lse.square().mean()


def compiled_loss(rows, vocab_size):
    """lm_loss through torch.compile, where that works; tried on logits of the very shape, forward and backward."""
    logits = torch.randn(rows, vocab_size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(rows, device="cuda", dtype=torch.long)
    compiled = torch.compile(lm_loss, dynamic=False)
    try:
        loss = compiled(logits, targets)
        loss.backward()
    except Exception as error:  # the compiler's own errors have many types
        print(f"the peer's loss is not compiled: {type(error).__name__}: {error}", file=sys.stderr)
        return lm_loss
    with torch.no_grad():
        plain = lm_loss(logits, targets)
    if not torch.allclose(loss, plain, rtol=1e-3):
        sys.exit(f"torch.compile makes the loss {loss.item()}, expected {plain.item()}")
    return compiled


def make_model(program, options):
    if program == "mamba_ssm":
        from mamba_ssm.models.config_mamba import MambaConfig
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
        config = MambaConfig(d_model=options.hidden_size, n_layer=options.layers, vocab_size=options.vocab_size,
                             rms_norm=True, residual_in_fp32=True, fused_add_norm=True, tie_embeddings=True)
        return MambaLMHeadModel(config, device="cuda", dtype=torch.float32)
    from transformers import MambaConfig, MambaForCausalLM
    from transformers.models.mamba import modeling_mamba
    config = MambaConfig(vocab_size=options.vocab_size, hidden_size=options.hidden_size,
                         num_hidden_layers=options.layers, use_cache=False)
    fused = modeling_mamba.mamba_inner_fn

    def demand_fused(*arguments, **keywords):
        result = fused(*arguments, **keywords)
        if result is None:
            sys.exit("transformers does not take mamba_ssm's fused path")
        return result

    modeling_mamba.mamba_inner_fn = demand_fused
    return MambaForCausalLM(config).to("cuda")


def forget_tuning():
    """The norm's launch shape is tuned at its first call and kept for any number of rows: tune again."""
    from mamba_ssm.ops.triton import layer_norm
    for kernel in (layer_norm._layer_norm_fwd_1pass_kernel, layer_norm._layer_norm_bwd_kernel):
        if hasattr(kernel, "cache"):
            kernel.cache.clear()


def bench_step(program, rows, options, report):
    forget_tuning()
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = make_model(program, options).train()
    count = sum(p.numel() for p in model.parameters())
    print(f"{program}: {count} parameters, {rows} rows of {options.seq_len}", flush=True)
    # transformers widens the logits itself: compiling would spare it little.
    loss_of = compiled_loss(rows * options.seq_len, options.vocab_size) if program == "mamba_ssm" else lm_loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.randint(0, options.vocab_size, (rows, options.seq_len + 1), device="cuda")
    tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].flatten()

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(tokens).logits
        loss = loss_of(logits.flatten(0, 1), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    ms = median_ms(step, options.warmup, options.repeats)
    name = f"{program}/step/{options.layers} layers/{rows} rows"
    report.add(f"{name}/tokens_per_second", rows * options.seq_len / ms * 1e3)
    report.add(f"{name}/ms", ms)
    report.add(f"{name}/peak_gib", torch.cuda.max_memory_allocated() / 2**30)


def bench_scan(batch, channels, options, report):
    import selective_scan_cuda
    length, states = options.seq_len, 16
    draw = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    u, dt, z, grad = (draw(batch, channels, length) for _ in range(4))
    b, c = (draw(batch, 1, states, length) for _ in range(2))
    a = -torch.arange(1, states + 1, device="cuda", dtype=torch.float32).repeat(channels, 1)
    skip, bias = torch.ones(channels, device="cuda"), torch.full((channels,), -4.0, device="cuda")
    forward = lambda: selective_scan_cuda.fwd(u, dt, a, b, c, skip, z, bias, True)
    report.add(f"selective_scan/{batch}x{channels}/forward_ms", median_ms(forward, options.warmup, options.repeats))
    out, chunk_states, _ = forward()
    backward = lambda: selective_scan_cuda.bwd(u, dt, a, b, c, skip, z, bias, grad, chunk_states, out, None, True,
                                               False)
    report.add(f"selective_scan/{batch}x{channels}/backward_ms", median_ms(backward, options.warmup, options.repeats))


def bench_convolution(batch, channels, layout, options, report):
    import causal_conv1d_cuda
    shape = (batch, channels, options.seq_len) if layout == "BDL" else (batch, options.seq_len, channels)
    tensors = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    x, out, grad, grad_x = tensors if layout == "BDL" else [t.transpose(1, 2) for t in tensors]
    weight, bias = torch.randn(channels, 4, device="cuda"), torch.randn(channels, device="cuda")
    grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    forward = lambda: causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, None, None, out, None, True)
    backward = lambda: causal_conv1d_cuda.causal_conv1d_bwd(x, weight, bias, grad, None, None, None, grad_x,
                                                            grad_weight, grad_bias, None, True)
    name = f"causal_conv1d/{batch}x{channels} {layout}"
    report.add(f"{name}/forward_ms", median_ms(forward, options.warmup, options.repeats))
    report.add(f"{name}/backward_ms", median_ms(backward, options.warmup, options.repeats))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[32, 4], help="(default: %(default)s)")
    parser.add_argument("--programs", nargs="*", choices=PROGRAMS, default=["mamba_ssm"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--no-kernels", action="store_true", help="only the steps")
    parser.add_argument("--no-steps", action="store_true", help="only the kernels")
    parser.add_argument("--ours", help="our figures: JSON lines or one object")
    parser.add_argument("--output", help="file for the JSON lines")
    parser.add_argument("--table", metavar="FILE", help="only print the table of an earlier --output")
    options = parser.parse_args()
    ours = read_values(options.ours) if options.ours else {}
    if options.table:
        report = Report(None)
        report.values = read_values(options.table)
        report.table(ours)
        return
    if not torch.cuda.is_available():
        sys.exit("no GPU: there is nothing to measure here")
    import transformers
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, transformers {transformers.__version__}; "
          f"median of {options.repeats} after {options.warmup}", flush=True)
    report = Report(options.output)
    with report.file:
        if not options.no_kernels:
            for shape in SCANS:
                bench_scan(*shape, options, report)
            for shape in CONVOLUTIONS:
                for layout in ("BDL", "BLD"):
                    bench_convolution(*shape, layout, options, report)
        if not options.no_steps:
            for program in options.programs:
                for rows in options.rows:
                    bench_step(program, rows, options, report)
                    gc.collect()
                    torch.cuda.empty_cache()
    report.table(ours)


if __name__ == "__main__":
    main()
