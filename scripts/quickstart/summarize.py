#!/usr/bin/env python3
"""Compares the trained model with counting, draws the loss curve, writes a summary as JSON.

Exit codes: 0 the model beats the bigram, 5 it does not (the summary is then not written).
"""

import argparse
import json
import struct
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend comes first: there is no display


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_metrics(path):
    """One dictionary a step."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def count_parameters(model):
    """From the header of a safetensors file: what is stored, a tied head once."""
    with model.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    total = 0
    for name, entry in header.items():
        if name != "__metadata__":
            elements = 1
            for extent in entry["shape"]:
                elements *= extent
            total += elements
    return total


def draw(metrics, summary, path):
    """Training and held-out loss over the tokens seen, with the baselines as lines."""
    figure, axes = plt.subplots(figsize=(8, 5))
    for name, label, style in (
        ("train/loss", "training", {"linewidth": 0.7, "alpha": 0.6}),
        ("eval/loss", "held out", {"marker": "o", "markersize": 3}),
    ):
        points = [(row["train/tokens"], row[name]) for row in metrics if row.get(name) is not None]
        if points:
            axes.plot(*zip(*points), label=label, **style)
    for name, style in (("unigram", ":"), ("bigram", "--")):
        nats = summary[name]["nats_per_token"]
        axes.axhline(nats, linestyle=style, color="grey", label=f"{name}: {nats:.2f}")
    axes.set(xlabel="tokens", ylabel="nats per token", title="Quickstart: held-out Portuguese")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def make_summary(run):
    corpus = read_json(run / "corpus" / "corpus.json")
    baselines = read_json(run / "baselines.json")
    evaluation = read_json(run / "evaluation.json")
    metrics = read_metrics(run / "metrics.jsonl")
    summary = {
        "unigram": baselines["unigram"],
        "bigram": baselines["bigram"],
        "model": {
            "nats_per_token": evaluation["loss"],
            "bits_per_byte": evaluation["bits_per_byte"],
        },
        "held_out_targets": baselines["held_out_targets"],
        "parameters": count_parameters(run / "hf" / "model.safetensors"),
        "steps": metrics[-1]["step"],
        "tokens_seen": metrics[-1]["train/tokens"],
        "train_tokens": baselines["train_tokens"],
        "train_bytes": corpus["splits"]["train"]["bytes"],
        "training_seconds": round(sum(row["perf/step_s"] for row in metrics), 1),
        "packages": corpus["packages"],
    }
    return summary, metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="DIR", help="the quickstart's folder")
    parser.add_argument("--output", type=Path, required=True, help="the summary to write")
    options = parser.parse_args()
    run = options.run
    summary, metrics = make_summary(run)
    draw(metrics, summary, run / "loss.png")
    print(f"  {'held-out loss':20} {'nats/token':>10} {'bits/byte':>10}")
    names = {"unigram": "unigram", "bigram": "Kneser-Ney bigram", "model": "this model"}
    for key, name in names.items():
        print(f"  {name:20} {summary[key]['nats_per_token']:10.3f} {summary[key]['bits_per_byte']:10.3f}")
    print(
        f"  {summary['parameters']:,} parameters, {summary['tokens_seen']:,} tokens in "
        f"{summary['training_seconds']:.0f} s of training steps"
    )
    if not summary["model"]["nats_per_token"] < summary["bigram"]["nats_per_token"]:
        print("summarize.py: the model is not better than the bigram", file=sys.stderr)
        sys.exit(5)
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
