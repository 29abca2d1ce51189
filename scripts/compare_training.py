#!/usr/bin/env python3
"""Trains transformers' MambaForCausalLM from the start, rows and recipe of one of our runs, and compares the losses.

    scripts/compare_training.py start configs/mambarim110m.yaml runs/compare/start
    build/bin/train --config configs/mambarim110m.yaml --set init_from=runs/compare/start \
        --set output_dir=runs/compare/ours --set train.max_steps=300
    scripts/compare_training.py run runs/compare/ours

The first command draws weights by transformers' own initialisation. The third one reads the run's
resolved_config.yaml and metrics.jsonl and trains as many steps as those have. Under precision bf16 the
peer computes the way the library's users do: fp32 weights, torch.autocast. On a GPU it must run
on mamba_ssm's fused kernels; that is counted, and anything else is an error. Written to --output, by
default the run's folder: peer_metrics.jsonl, comparison.json, comparison.png.

Roundings, and the order of the peer's float atomics, are enough to set runs from one start apart. So
runs from several starts (`start --seed 2`, `train --set seed=2`) are judged together, by the mean of
their differences and its standard error, which is their standard deviation / sqrt(their number):

    scripts/compare_training.py pool runs/compare/1 runs/compare/2 runs/compare/3 --output runs/compare

Each folder holds metrics.jsonl and peer_metrics.jsonl. Written: pooled.json, pooled.png.

Needs torch, transformers, h5py, matplotlib and PyYAML, on a GPU also mamba_ssm and causal-conv1d built
for it. Exit codes: 0 the mean losses of the last steps agree within --limit (pool: within two standard
errors, too), 1 they do not, 2 usage or what is compared does not belong together, 3 the spread of the
pooled runs leaves it open.
"""

import argparse
import collections
import json
import math
import os
import re
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["USE_HUB_KERNELS"] = "NO"  # before transformers is imported: the installed kernels, not the hub's

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import yaml  # noqa: E402

from jiboia_data.row_order import permuted_row  # noqa: E402

WINDOW = 20
AGREE, APART, USAGE, OPEN = range(4)  # exit codes
IGNORED = -100


class Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does: 5e-05 is one."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
                             list("-+.0123456789"))


def fail(message):
    print(f"compare_training.py: {message}", file=sys.stderr)
    sys.exit(USAGE)


def read_yaml(path):
    return yaml.load(path.read_text(encoding="utf-8"), Loader)


def read_lines(path):
    """The lines of a metrics.jsonl, which must be of steps 1, 2, ... with finite losses."""
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            if line["step"] != number:
                fail(f"{path}:{number}: step {line['step']}, expected {number}")
            if not math.isfinite(line["train/loss"]):
                fail(f"{path}:{number}: the loss is {line['train/loss']}")
        except (ValueError, KeyError, TypeError) as error:
            fail(f"{path}:{number}: no line of a metrics.jsonl: {error}")
        lines.append(line)
    if not lines:
        fail(f"{path}: no steps")
    return lines


class Rows:
    """The rows of a folder of token shards, cut by the rules of data/FORMAT.md."""

    def __init__(self, folder, seq_len):
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.seq_len, self.is_stream = seq_len, manifest["layout"] == "stream"
        self.shards = [h5py.File(folder / file["name"], "r")["tokens"] for file in manifest["files"]]
        self.length = seq_len + 1 if self.is_stream else manifest["row_length"]
        if self.length not in (seq_len, seq_len + 1):
            fail(f"{folder}: rows of {self.length} tokens, expected {seq_len} or {seq_len + 1}")
        self.ends = np.cumsum([len(shard) for shard in self.shards])  # in tokens or in rows
        self.count = int(self.ends[-1] - 1) // seq_len if self.is_stream else int(self.ends[-1])

    def _slice(self, begin, end):
        parts = []
        for shard, last in zip(self.shards, self.ends):
            first = int(last) - len(shard)
            if begin < last and end > first:
                parts.append(shard[max(begin, first) - first:min(end, int(last)) - first])
        return np.concatenate(parts)

    def read(self, index):
        """(tokens, targets) of one row, both of seq_len; IGNORED where there is no target."""
        if self.is_stream:
            row = self._slice(index * self.seq_len, (index + 1) * self.seq_len + 1)
        else:
            row = self._slice(index, index + 1)[0]
        row = row.astype(np.int64)
        targets = np.full(self.seq_len, IGNORED)
        targets[:self.length - 1] = row[1:]
        return row[:self.seq_len], targets


def learning_rate(schedule, lr, step, max_steps):
    """The formulas of train/optim/lr_schedule.h."""
    warmup, name = schedule["warmup_steps"], schedule["name"]
    if step < warmup:
        return lr * (step + (schedule["indexing"] == "open_lm")) / warmup
    begin = warmup if name == "cosine" else max(warmup, max_steps - schedule["cooldown_steps"])
    progress = min(max(step - begin, 0) / max(max_steps - begin, 1), 1)
    if name == "constant":
        return lr
    if name == "wsd":
        return lr + (schedule["min_lr"] - lr) * progress
    return schedule["min_lr"] + (lr - schedule["min_lr"]) * 0.5 * (1 + math.cos(math.pi * progress))


def decays(name, parameter, scope):
    return scope == "all" or (parameter.ndim >= 2 and not name.endswith("A_log"))


class FusedCalls:
    """Counts how often the mixers took transformers' fused path and mamba_ssm's kernels were launched."""

    def __init__(self):
        from mamba_ssm.ops import selective_scan_interface as interface
        from transformers.models.mamba import modeling_mamba
        self.counts = collections.Counter()
        fused, kernels = modeling_mamba.mamba_inner_fn, interface.selective_scan_cuda

        def mixer(*arguments, **options):
            result = fused(*arguments, **options)
            self.counts["mixers"] += 1
            self.counts["fused"] += result is not None
            return result

        class Kernels:
            @staticmethod
            def fwd(*arguments):
                self.counts["forward kernels"] += 1
                return kernels.fwd(*arguments)

            @staticmethod
            def bwd(*arguments):
                self.counts["backward kernels"] += 1
                return kernels.bwd(*arguments)

        modeling_mamba.mamba_inner_fn, interface.selective_scan_cuda = mixer, Kernels

    def demand(self, wanted):
        names = ["mixers", "fused", "forward kernels", "backward kernels"]
        if any(self.counts[name] != wanted for name in names):
            fail(f"transformers did not run on mamba_ssm's kernels alone: {dict(self.counts)}, expected {wanted} "
                     "of each")


def load_model(folder, device):
    import torch
    from transformers import MambaForCausalLM
    model, report = MambaForCausalLM.from_pretrained(folder, output_loading_info=True)
    if any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        fail(f"{folder} is not the model of its config.json: {report}")
    return model.to(device, torch.float32).train()


def train_peer(config, model, rows, steps, log):
    """Trains the model by a run's resolved configuration; returns one dictionary a step, with the keys of our
    metrics.jsonl."""
    import torch
    device = model.device.type
    counter = FusedCalls() if device == "cuda" else None
    optim, train, z_loss = config["optim"], config["train"], config["loss"]["z_loss"]
    parameters = dict(model.named_parameters())
    groups = [{"params": [p for n, p in parameters.items() if decays(n, p, optim["weight_decay_scope"]) == decayed],
               "weight_decay": optim["weight_decay"] if decayed else 0.0} for decayed in (True, False)]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=optim["lr"],
                                  betas=tuple(optim["betas"]), eps=optim["eps"], **({"fused": True} if counter else {}))
    autocast = torch.autocast(device, torch.bfloat16, enabled=config["precision"] == "bf16")
    micro, rows_a_step = train["micro_batch_size"], train["global_batch_size"]
    share = micro / rows_a_step
    lines = []
    for step in range(steps):
        begin = time.perf_counter()
        lr = learning_rate(config["schedule"], optim["lr"], step, train["max_steps"])
        for group in optimizer.param_groups:
            group["lr"] = lr
        cross_entropy = torch.zeros((), device=device)
        lse_squared = torch.zeros((), device=device)
        for first in range(step * rows_a_step, (step + 1) * rows_a_step, micro):
            chosen = [rows.read(permuted_row(config["seed"], p // rows.count, p % rows.count, rows.count))
                      for p in range(first, first + micro)]
            tokens, targets = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*chosen))
            with autocast:
                logits = model(tokens, use_cache=False).logits
            logits = logits.float().flatten(0, 1)
            loss = part = torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED)
            cross_entropy += share * part.detach()
            if z_loss > 0:
                part = torch.logsumexp(logits, -1).square().mean()
                lse_squared += share * part.detach()
                loss = loss + z_loss * part
            (share * loss).backward()
            del logits, loss, part
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim["grad_clip"] or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        z_part = z_loss * lse_squared.item()
        line = {"step": step + 1, "train/loss": cross_entropy.item() + z_part, "train/z_loss": z_part,
                "train/grad_norm": norm.item(), "train/lr": lr}
        line["perf/step_s"] = time.perf_counter() - begin
        lines.append(line)
        log.write(json.dumps(line) + "\n")
        if step == 0 or (step + 1) % 20 == 0:
            log.flush()
            print(f"peer: step {step + 1} of {steps}, loss {line['train/loss']:.4f}, "
                  f"{line['perf/step_s'] * 1e3:.0f} ms", flush=True)
    if counter:
        counter.demand(steps * rows_a_step // micro * model.config.num_hidden_layers)
        print(f"peer: {dict(counter.counts)}: every mixer took the fused path", flush=True)
    return lines


def moving_average(values):
    width = min(WINDOW, len(values))
    return np.convolve(values, np.full(width, 1 / width), "valid")


def compare(ours, theirs, last):
    """What the table, the picture and comparison.json say; differences are ours against theirs, in percent."""
    a, b = (np.array([line["train/loss"] for line in lines]) for lines in (ours, theirs))
    percent = lambda x, y: 100 * float((x - y) / y)
    smooth_a, smooth_b = moving_average(a), moving_average(b)
    smooth = 100 * (smooth_a - smooth_b) / smooth_b
    worst = int(np.abs(smooth).argmax())
    step_ms = lambda lines: 1e3 * statistics.median(line["perf/step_s"] for line in lines)
    return {
        "steps": len(a), "last_steps": last, "window": WINDOW,
        "first_loss": {"ours": float(a[0]), "theirs": float(b[0]), "percent": percent(a[0], b[0])},
        "last_mean_loss": {"ours": float(a[-last:].mean()), "theirs": float(b[-last:].mean()),
                           "percent": percent(a[-last:].mean(), b[-last:].mean())},
        "largest_deviation_of_moving_average": {"percent": float(smooth[worst]),
                                                "last_step": worst + min(WINDOW, len(a))},
        "step_ms": {"ours": step_ms(ours), "theirs": step_ms(theirs)},
    }, (a, b, smooth_a, smooth_b, smooth)


def draw(result, pairs, title, peer, path):
    """The curves of one pair of runs, or of several with the mean of their differences."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 7), sharex=True, height_ratios=[3, 1])
    several = len(pairs) > 1
    for index, (a, b, smooth_a, smooth_b, smooth) in enumerate(pairs):
        steps = np.arange(1, len(a) + 1)
        ends = steps[len(a) - len(smooth):]
        for values, average, label, colour, style in [(b, smooth_b, peer, "tab:orange", "-"),
                                                      (a, smooth_a, "this project", "tab:blue", "--")]:
            if not several:
                top.plot(steps, values, color=colour, linewidth=0.6, alpha=0.5)
            top.plot(ends, average, color=colour, linestyle=style, linewidth=0.9 if several else 1.5,
                     label=None if index else f"{label}, mean of {WINDOW} steps")
        bottom.plot(ends, smooth, color="grey" if several else "black", linewidth=0.8)
    if several:
        bottom.plot(ends, np.mean([pair[-1] for pair in pairs], axis=0), color="black", label="mean of the runs")
        bottom.legend()
    top.set(ylabel="training loss, nats per token", title=title)
    top.legend()
    top.grid(alpha=0.3)
    for sign in (-1, 1):
        bottom.axhline(sign * result["limit_percent"], linestyle=":", color="tab:red")
    bottom.axvspan(len(steps) - result["last_steps"] + 1, len(steps), color="grey", alpha=0.15)
    bottom.set(xlabel="step", ylabel=f"difference of the\n{WINDOW}-step means, %")
    bottom.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def print_table(result):
    print(f"  {'':34} {'ours':>10} {'theirs':>10} {'difference':>11}")
    rows = [("loss of step 1", "first_loss"), (f"mean loss of the last {result['last_steps']} steps", "last_mean_loss")]
    for label, key in rows:
        line = result[key]
        print(f"  {label:34} {line['ours']:10.4f} {line['theirs']:10.4f} {line['percent']:+10.3f}%")
    worst = result["largest_deviation_of_moving_average"]
    print(f"  {f'largest of {WINDOW}-step means':34} {'step':>10} {worst['last_step']:10} {worst['percent']:+10.3f}%")
    print(f"  {'median step, ms':34} {result['step_ms']['ours']:10.1f} {result['step_ms']['theirs']:10.1f}")


def write_start(options):
    import torch
    from transformers import MambaConfig, MambaForCausalLM
    config = read_yaml(options.config)
    torch.manual_seed(options.seed if options.seed is not None else config["seed"])
    section = {key: value for key, value in config["model"].items() if key != "initialisation"}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if section.get(key) == -1:
            section[key] = None
    model = MambaForCausalLM(MambaConfig(**section))
    model.save_pretrained(options.output)
    print(f"{options.output}: {sum(p.numel() for p in model.parameters())} parameters, drawn by transformers")


def run(options):
    import torch
    import transformers
    config = read_yaml(options.run / "resolved_config.yaml")
    if config["data"]["reset_at_document_starts"]:
        fail("the run resets its state at documents: transformers cannot")
    ours = read_lines(options.run / "metrics.jsonl")
    steps = options.steps or len(ours)
    if steps > len(ours):
        fail(f"{options.run}: {len(ours)} steps, wanted {steps}")
    output = options.output or options.run
    output.mkdir(parents=True, exist_ok=True)
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    if options.theirs:
        theirs = read_lines(options.theirs)
        if len(theirs) < steps:
            fail(f"{options.theirs}: {len(theirs)} steps, wanted {steps}; --steps says how many")
    else:
        model = options.model or Path(config["init_from"])
        if not (model / "config.json").exists():
            fail(f"{model}: no config.json; --model must be the folder of the weights that the run started from")
        rows = Rows(options.shards or Path(config["data"]["train"]), config["data"]["seq_len"])
        print(f"peer: torch {torch.__version__}, transformers {transformers.__version__}, {where}, "
              f"{rows.count} rows", flush=True)
        with open(output / "peer_metrics.jsonl", "w", encoding="utf-8") as log:
            theirs = train_peer(config, load_model(model, device), rows, steps, log)
    result, curves = compare(ours[:steps], theirs[:steps], min(options.last, steps))
    result |= {"device": where, "torch": torch.__version__, "transformers": transformers.__version__,
               "precision": config["precision"], "limit_percent": options.limit}
    train = config["train"]
    shape = config["model"]
    title = (f"{shape['num_hidden_layers']} layers x {shape['hidden_size']}, {config['precision']}, "
             f"{train['global_batch_size']} x {config['data']['seq_len']} tokens a step, {where}")
    peer = "transformers on mamba_ssm's kernels" if device == "cuda" else "transformers"
    draw(result, [curves], title, peer, output / "comparison.png")
    (output / "comparison.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print_table(result)
    say_verdict(AGREE if abs(result["last_mean_loss"]["percent"]) <= options.limit else APART, options.limit,
                output / "comparison.png")


def say_verdict(verdict, limit, picture):
    words = {AGREE: "within", APART: "NOT within", OPEN: "too far from each other to say whether within"}[verdict]
    print(f"{words} {limit} %; {picture}")
    sys.exit(verdict)


def read_pair(folder):
    """Our lines and the peer's of one start."""
    ours, theirs = (read_lines(folder / name) for name in ("metrics.jsonl", "peer_metrics.jsonl"))
    for a, b in zip(ours, theirs):
        if not math.isclose(a["train/lr"], b["train/lr"], rel_tol=1e-9):
            fail(f"{folder}: step {a['step']} has learning rate {a['train/lr']} in metrics.jsonl and {b['train/lr']} "
                 "in peer_metrics.jsonl; wanted two runs of one recipe")
    return ours, theirs


def pool(options):
    if len({folder.resolve() for folder in options.folders}) < max(3, len(options.folders)):
        fail(f"got {', '.join(map(str, options.folders))}; wanted three different folders or more")
    pairs = [read_pair(folder) for folder in options.folders]
    lengths = {len(lines) for pair in pairs for lines in pair}
    steps = options.steps or min(lengths)
    if steps > min(lengths) or (not options.steps and len(lengths) > 1):
        fail(f"the runs have {sorted(lengths)} steps; wanted equally many, or --steps that all have")
    last = min(options.last, steps)
    results, curves = zip(*(compare(ours[:steps], theirs[:steps], last) for ours, theirs in pairs))
    percents = [result["last_mean_loss"]["percent"] for result in results]
    mean, deviation = statistics.mean(percents), statistics.stdev(percents)
    error = deviation / math.sqrt(len(percents))
    pooled = {"steps": steps, "last_steps": last, "window": WINDOW, "limit_percent": options.limit,
              "percent": {"mean": mean, "standard_deviation": deviation, "standard_error": error},
              "runs": [{"folder": folder.name, "first_loss": result["first_loss"],
                        "last_mean_loss": result["last_mean_loss"]}
                       for folder, result in zip(options.folders, results)]}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "pooled.json").write_text(json.dumps(pooled, indent=2) + "\n", encoding="utf-8")
    draw(pooled, curves, f"{len(pairs)} pairs of runs of {steps} steps", "transformers", options.output / "pooled.png")
    print(f"  {f'mean loss of the last {last} steps':34} {'ours':>10} {'theirs':>10} {'difference':>11}")
    for folder, result in zip(options.folders, results):
        line = result["last_mean_loss"]
        print(f"  {folder.name:34} {line['ours']:10.4f} {line['theirs']:10.4f} {line['percent']:+10.3f}%")
    print(f"  {'mean of the differences':34} {'':21} {mean:+10.3f}%, standard error {error:.3f}%, standard deviation "
          f"{deviation:.3f}%")
    verdict = (AGREE if abs(mean) + 2 * error <= options.limit else
               APART if abs(mean) - 2 * error > options.limit else OPEN)
    say_verdict(verdict, options.limit, options.output / "pooled.png")


def count(text):
    if int(text) < 1:
        raise ValueError
    return int(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    start = commands.add_parser("start", help="draw starting weights by transformers' initialisation")
    start.add_argument("config", type=Path, help="a configuration of a run; its `model` section counts")
    start.add_argument("output", type=Path, help="folder to write, in Hugging Face's format")
    start.add_argument("--seed", type=int, help="default: the configuration's")
    start.set_defaults(action=write_start)
    command = commands.add_parser("run", help="train the peer and compare")
    command.add_argument("run", type=Path, help="folder of our run: resolved_config.yaml, metrics.jsonl")
    command.add_argument("--model", type=Path, help="the starting weights; default: the run's init_from")
    command.add_argument("--shards", type=Path, help="default: the run's data.train")
    command.add_argument("--theirs", type=Path, help="a peer_metrics.jsonl from before: only compare")
    command.add_argument("--output", type=Path, help="folder to write; default: the run's")
    command.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto",
                         help="on the CPU transformers takes its sequential loop: for tiny models")
    command.set_defaults(action=run)
    pooled = commands.add_parser("pool", help="judge several pairs of runs together")
    pooled.add_argument("folders", type=Path, nargs="+", help="three or more, each with metrics.jsonl and peer_metrics.jsonl")
    pooled.add_argument("--output", type=Path, required=True, help="folder to write")
    pooled.set_defaults(action=pool)
    command.add_argument("--steps", type=count, help="default: all of our metrics.jsonl")
    pooled.add_argument("--steps", type=count, help="default: all, which must be equally many")
    for each in (command, pooled):
        each.add_argument("--last", type=count, default=100, help="steps of the compared mean (default: %(default)s)")
        each.add_argument("--limit", type=float, default=0.5, help="percent (default: %(default)s)")
    options = parser.parse_args()
    try:
        options.action(options)
    except OSError as error:
        fail(error)


if __name__ == "__main__":
    main()
