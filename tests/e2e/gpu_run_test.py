"""Whole runs on a GPU: same bits again and after stops, the CPU's losses, checkpoints that move between both."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from gpu import is_emulated, require_gpu
from programs import BIN, run, write_rows, write_yaml
from safetensors.numpy import load_file
from tiny_run import (LENGTH, VOCAB, assert_close, assert_same_end, checkpoints_of, config_of, copy_until, losses_of,
                      metrics_of, start, write_data)

STEPS = 6
PRECISIONS = ["fp32", "bf16"]


@pytest.fixture(scope="module", autouse=True)
def gpu():
    return require_gpu()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def gpu_config(data, output, steps=STEPS, **changes):
    return config_of(data, output, steps, **{"device": "cuda", "precision": "bf16", "eval__every": 3} | changes)


@pytest.fixture(scope="module", params=PRECISIONS)
def whole(request, tmp_path_factory, data):
    """An undisturbed run that keeps every checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    start(folder, gpu_config(data, folder / "run", every=1, checkpoint__keep=0, precision=request.param))
    assert len(checkpoints_of(folder / "run")) == STEPS
    return folder / "run", request.param


def test_cuda_runs_again_with_the_same_bits(whole, data, tmp_path):
    wanted, precision = whole
    start(tmp_path, gpu_config(data, tmp_path / "run", precision=precision))
    assert_same_end(tmp_path / "run", wanted, STEPS)
    assert losses_of(wanted)[-1] < losses_of(wanted)[0]


@pytest.mark.parametrize("recompute", ["selective", "block"])
def test_cuda_recompute_gives_the_same_bits(recompute, whole, data, tmp_path):
    wanted, precision = whole
    start(tmp_path, gpu_config(data, tmp_path / "run", precision=precision, train__recompute=recompute))
    assert_same_end(tmp_path / "run", wanted, STEPS, without=("perf/", "mem/"))


def test_cuda_graphs_give_the_same_bits(whole, data, tmp_path):
    wanted, precision = whole
    start(tmp_path, gpu_config(data, tmp_path / "run", precision=precision, train__cuda_graphs="never"))
    assert_same_end(tmp_path / "run", wanted, STEPS)
    for graphs in ("auto", "never"):  # steps of one micro-batch, and recompute
        start(tmp_path, gpu_config(data, tmp_path / graphs, precision=precision, train__cuda_graphs=graphs,
                                   train__micro_batch_size=6, train__recompute="block"))
    assert_same_end(tmp_path / "auto", tmp_path / "never", STEPS)


def test_cuda_resumes_after_every_step_with_the_same_bits(whole, data, tmp_path):
    wanted, precision = whole
    for step in range(1, STEPS):
        copy_until(wanted, tmp_path / "run", step)
        start(tmp_path, gpu_config(data, tmp_path / "run", precision=precision))
        assert_same_end(tmp_path / "run", wanted, STEPS)


def test_cuda_gives_the_same_bits_at_a_size_that_fills_it(tmp_path):
    """Tensor cores' products, scans in several blocks, rows of odd length and resets."""
    if is_emulated():
        pytest.skip("takes too long on an emulated GPU")
    length, steps = 511, 4
    write_documents(tmp_path / "data/train", 16, length)

    def train(name, **changes):
        start(tmp_path, gpu_config(tmp_path / "data", tmp_path / name, steps=steps, every=1, checkpoint__keep=0,
                                   model__hidden_size=256, model__state_size=16, data__seq_len=length,
                                   data__validation="", eval__every=0, data__reset_at_document_starts=True, **changes))
    train("whole")
    train("again")
    assert_same_end(tmp_path / "again", tmp_path / "whole", steps)
    train("launched", train__cuda_graphs="never")
    assert_same_end(tmp_path / "launched", tmp_path / "whole", steps)
    for recompute in ("selective", "block"):
        train(recompute, train__recompute=recompute)
        assert_same_end(tmp_path / recompute, tmp_path / "whole", steps, without=("perf/", "mem/"))
    copy_until(tmp_path / "whole", tmp_path / "resumed", 2)
    train("resumed")
    assert_same_end(tmp_path / "resumed", tmp_path / "whole", steps)


@pytest.mark.parametrize("precision, limit", [("fp32", 1e-5), ("bf16", 1e-2)])
def test_cuda_losses_are_those_of_the_cpu(precision, limit, data, tmp_path):
    for device in ("cpu", "cuda"):
        start(tmp_path, gpu_config(data, tmp_path / device, steps=12, device=device, precision=precision))
    assert_close(losses_of(tmp_path / "cuda"), losses_of(tmp_path / "cpu"), limit)
    evals = [[line["eval/loss"] for line in metrics_of(tmp_path / device) if "eval/loss" in line]
             for device in ("cuda", "cpu")]
    assert_close(*evals, limit)


def write_documents(folder, rows, length):
    random = np.random.default_rng(5)
    tokens = random.integers(1, VOCAB, (rows, length))
    tokens[random.random(tokens.shape) < 0.2] = 0  # ends of documents
    return write_rows(folder, tokens, VOCAB, "--eos-token-id", 0, "--document-starts", "after-eos")


def test_cuda_resets_at_document_starts_like_the_cpu(tmp_path):
    write_documents(tmp_path / "data/train", 12, LENGTH)

    def losses(name, device, precision, resets):
        start(tmp_path, gpu_config(tmp_path / "data", tmp_path / name, device=device, precision=precision,
                                   data__validation="", eval__every=0, data__reset_at_document_starts=resets))
        return losses_of(tmp_path / name)
    wanted = losses("cpu", "cpu", "fp32", True)
    assert_close(losses("cuda", "cuda", "fp32", True), wanted, 1e-5)
    rough = losses("rough", "cuda", "bf16", True)
    assert_close(rough, wanted, 1e-2)
    without = losses("without", "cuda", "fp32", False)
    assert abs(without[-1] - wanted[-1]) > 1e-5 * wanted[-1], "the resets must have mattered"
    assert losses("rough_without", "cuda", "bf16", False) != rough


@pytest.mark.parametrize("precision, limit", [("fp32", 1e-5), ("bf16", 1e-2)])
@pytest.mark.parametrize("first, second", [("cpu", "cuda"), ("cuda", "cpu")])
def test_cuda_checkpoints_move_to_and_from_the_cpu(first, second, precision, limit, data, tmp_path):
    def config(output, device):
        return gpu_config(data, output, device=device, precision=precision, every=1, checkpoint__keep=0)
    start(tmp_path, config(tmp_path / "whole", second))
    start(tmp_path, config(tmp_path / "run", first))
    copy_until(tmp_path / "run", tmp_path / "moved", 3)
    resumed = start(tmp_path, config(tmp_path / "moved", second))
    assert "at step 3" in resumed.stderr
    assert_close(losses_of(tmp_path / "moved"), losses_of(tmp_path / "whole"), limit)


def test_cuda_run_stops_at_a_signal_and_goes_on(data, tmp_path):
    config = write_yaml(tmp_path / "run.yaml", gpu_config(data, tmp_path / "run", steps=100_000, every=0))
    process = subprocess.Popen([BIN / "train", "--config", config], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    last = metrics_of(tmp_path / "run")[-1]["step"]
    assert checkpoints_of(tmp_path / "run") == [f"step_{last:08}"]
    assert f"at step {last}" in start(tmp_path, gpu_config(data, tmp_path / "run", steps=last + 1)).stderr


def test_cuda_memory_is_what_was_planned(data, tmp_path):
    tree = gpu_config(data, tmp_path / "run")
    plan = start(tmp_path, tree, "--plan").stdout
    planned = int(re.search(r"^total .*?(\d+) bytes$", plan, re.M).group(1))
    start(tmp_path, tree)
    for line in metrics_of(tmp_path / "run"):
        assert round(line["mem/max_allocated_gib"] * 2**30) == planned


def test_cuda_run_that_does_not_fit_is_refused(data, tmp_path):
    refused = start(tmp_path, gpu_config(data, tmp_path / "run", model__hidden_size=65536, model__num_hidden_layers=64),
                    code=1)
    for words in ("out of memory", "the run needs", "a smaller model", "weights (fp32)"):
        assert words in refused.stderr
    assert not (tmp_path / "run/metrics.jsonl").exists()


def assert_finite(checkpoint):
    for file in checkpoint.glob("*.safetensors"):
        for name, values in load_file(file).items():
            assert np.isfinite(values).all(), (file, name)


@pytest.mark.parametrize("every", [0, 1])
def test_cuda_run_that_diverges_leaves_what_was_good(every, whole, data, tmp_path):
    wanted, precision = whole
    copy_until(wanted, tmp_path / "run", 3)

    def resume(**changes):
        return start(tmp_path, gpu_config(data, tmp_path / "run", precision=precision, **changes)).stderr
    diverged = start(tmp_path, gpu_config(data, tmp_path / "run", precision=precision, every=every, optim__lr=1e30,
                                          eval__every=0, checkpoint__keep=0), code=5)
    assert "checkpoint" in diverged.stderr
    bad = int(re.search(r"numerics: step (\d+)", diverged.stderr).group(1))
    kept = checkpoints_of(tmp_path / "run")
    assert kept[0] == "step_00000003" and kept[-1] < f"step_{bad:08}"
    for name in kept:
        assert_finite(tmp_path / "run/checkpoints" / name)
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == list(range(1, bad))
    # A checkpoint may have huge weights, all finite: the message says to remove it.
    for name in kept[1:]:
        shutil.rmtree(tmp_path / "run/checkpoints" / name)
    assert "at step 3" in resume()
    assert_same_end(tmp_path / "run", wanted, STEPS)


def test_cuda_profile_shows_every_op(data, tmp_path):
    said = start(tmp_path, gpu_config(data, tmp_path / "run", steps=2), "--profile").stdout
    for op in ("embedding", "add_rms_norm", "linear", "causal_conv1d", "selective_scan", "cross_entropy", "optimizer"):
        assert re.search(rf"^{op} .*\d", said, re.M), said


def test_cuda_evaluates_like_the_cpu(whole, data, tmp_path):
    folder, _ = whole
    scores = [json.loads(run("evaluate", "--model", folder, "--data", data / "validation", "--device", device,
                             "--json").stdout)["loss"] for device in ("cuda", "cpu")]
    assert_close(scores[:1], scores[1:], 1e-5)
    rough = json.loads(run("evaluate", "--model", folder, "--data", data / "validation", "--device", "cuda",
                           "--precision", "bf16", "--json").stdout)["loss"]
    assert_close([rough], scores[1:], 1e-2)
    assert rough != scores[0]


def test_cuda_is_refused_where_it_is_not(data, tmp_path):
    if is_emulated():
        hidden = os.environ | {"JIBOIA_EMULATED_GPUS": "0"}
    else:
        hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    refused = start(tmp_path, gpu_config(data, tmp_path / "run"), code=6, env=hidden)
    assert "nvidia-smi" in refused.stderr and "device: cpu" in refused.stderr
    on_cpu = start(tmp_path, gpu_config(data, tmp_path / "run", steps=1, device="auto"), env=hidden)
    assert "CPU" in on_cpu.stderr
