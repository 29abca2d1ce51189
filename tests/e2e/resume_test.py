"""Same bits: again, after every stop, on any number of threads, with recompute, after kills."""

import contextlib
import random
import shutil
import signal
import subprocess
import time

import pytest
from programs import BIN, write_yaml
from tiny_run import (add_tokenizer, assert_same_end, checkpoints_of, config_of, copy_until, metrics_of, repeats, start,
                      write_data)

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """An undisturbed run that keeps every checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    start(folder, config_of(data, folder / "run", STEPS, every=1, checkpoint__keep=0))
    assert len(checkpoints_of(folder / "run")) == STEPS
    return folder / "run"


def test_metrics_say_that_it_learns(whole):
    lines = metrics_of(whole, without=())
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["train/loss"] < lines[0]["train/loss"] - 0.05
    assert lines[-1]["train/tokens"] == STEPS * 6 * 32
    assert [line["step"] for line in lines if "eval/loss" in line] == [5, 10, 12]
    assert all(line["perf/tokens_per_second"] > 0 for line in lines)


@pytest.mark.parametrize("changes", [dict(threads=1), dict(threads=3), dict(train__recompute="selective"),
                                     dict(train__recompute="block")],
                         ids=["1 thread", "3 threads", "selective", "recompute"])
def test_bits_do_not_depend_on(changes, data, whole, tmp_path):
    start(tmp_path, config_of(data, tmp_path / "run", STEPS, **changes))
    # What a run takes of memory does depend on recompute.
    assert_same_end(tmp_path / "run", whole, STEPS, without=("perf/", "mem/"))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_resuming_after_every_step_gives_the_same_bits(threads, data, whole, tmp_path):
    for step in range(1, STEPS):
        recompute = ("none", "block", "selective")[step % 3]
        copy_until(whole, tmp_path / "run", step)
        start(tmp_path, config_of(data, tmp_path / "run", STEPS, threads=threads, train__recompute=recompute))
        assert_same_end(tmp_path / "run", whole, STEPS, without=("perf/", "mem/"))


def test_other_micro_batches_see_the_same_rows(data, whole, tmp_path):
    start(tmp_path, config_of(data, tmp_path / "run", STEPS, train__micro_batch_size=3))
    for ours, wanted in zip(metrics_of(tmp_path / "run"), metrics_of(whole)):
        assert abs(ours["train/loss"] - wanted["train/loss"]) < 1e-5 * wanted["train/loss"]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_stops(number, code, data, tmp_path):
    with long_run(data, tmp_path, number, signal.SIG_DFL) as process:
        process.send_signal(number)
        if number == signal.SIGHUP:
            process.send_signal(number)  # as closing terminals do
        last = assert_saved_and_stopped(process, tmp_path, code)
    # What was saved goes on as if nothing had happened.
    resumed = start(tmp_path, config_of(data, tmp_path / "run", steps=last + 1))
    assert f"at step {last}" in resumed.stderr


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_stops_nothing(number, data, tmp_path):
    """As nohup starts programs, and as shells start those that a script puts in the background."""
    with long_run(data, tmp_path, number, signal.SIG_IGN) as process:
        process.send_signal(number)
        steps = len(metrics_of(tmp_path / "run"))
        wait_for(lambda: process.poll() is not None or len(metrics_of(tmp_path / "run")) > steps + 3)
        process.terminate()
        assert_saved_and_stopped(process, tmp_path, 143)


def test_a_signal_ends_a_sample(tmp_path):
    data = write_data(tmp_path / "data")
    add_tokenizer(data / "train")
    changes = dict(every=5, model__vocab_size=256, eval__every=4, eval__sample_prompt="a", eval__sample_tokens=1 << 20)
    with long_run(data, tmp_path, signal.SIGTERM, signal.SIG_DFL, **changes) as process:
        time.sleep(1)  # it is at work on the sample
        process.terminate()
        _, said = process.communicate(timeout=20)  # the sample would take longer
    assert process.returncode == 143 and "sample: " in said
    assert checkpoints_of(tmp_path / "run") == ["step_00000004"]


def test_weights_alone_are_a_model_and_no_run_goes_on_from_them(data, tmp_path):
    tree = config_of(data, tmp_path / "run", steps=4, every=2, checkpoint__contents="weights")
    start(tmp_path, tree)
    assert not list((tmp_path / "run/checkpoints/step_00000004").glob("optimizer*"))
    assert "is finished" in start(tmp_path, tree).stderr
    refused = start(tmp_path, config_of(data, tmp_path / "run", steps=6), code=4)
    assert "init_from" in refused.stderr and "another output_dir" in refused.stderr
    start(tmp_path, config_of(data, tmp_path / "next", steps=2, init_from=tmp_path / "run"))
    whole = config_of(data, tmp_path / "whole", steps=2)
    start(tmp_path, whole)
    refused = start(tmp_path, config_of(data, tmp_path / "whole", steps=4, checkpoint__contents="weights"), code=2)
    assert "take its place" in refused.stderr
    assert checkpoints_of(tmp_path / "whole") == ["step_00000002"]


def test_a_last_update_that_ruins_the_weights_costs_no_checkpoint(data, tmp_path):
    def config(**changes):
        return config_of(data, tmp_path / "run", every=2, checkpoint__keep=1, eval__every=0, data__validation="",
                         **changes)
    start(tmp_path, config(steps=4))
    ruined = start(tmp_path, config(steps=5, optim__lr=1e30, schedule__min_lr=1e30), code=5)
    assert "step 5" in ruined.stderr
    assert checkpoints_of(tmp_path / "run") == ["step_00000004", "step_00000005"]
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000005")
    assert "at step 4" in start(tmp_path, config(steps=6)).stderr


def test_killed_at_random_moments_it_ends_in_the_same_bits(data, tmp_path):
    """kill -9 again and again; every start finds what was committed."""
    steps, kills = 60, repeats("JIBOIA_KILLS", 25)
    dice = random.Random(1)
    start(tmp_path, config_of(data, tmp_path / "undisturbed", steps, every=3))
    tree = config_of(data, tmp_path / "run", steps, every=3)
    config = write_yaml(tmp_path / "run.yaml", tree)
    done = 0
    while done < kills:
        committed = checkpoints_of(tmp_path / "run") if (tmp_path / "run/checkpoints").exists() else []
        process = subprocess.Popen([BIN / "train", "--config", config], stderr=subprocess.PIPE, text=True)
        time.sleep(dice.uniform(0, 0.4))
        process.kill()
        _, said = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), said
        assert "damaged" not in said, said
        if "resumed from" in said:
            assert committed and f"/{committed[-1]} " in said, (committed, said)
        elif "starts at step 0" in said:
            assert not committed, (committed, said)
        done += process.returncode != 0
        if process.returncode == 0 and done < kills:  # finished before all kills were spent: from the start again
            assert_same_end(tmp_path / "run", tmp_path / "undisturbed", steps)
            shutil.rmtree(tmp_path / "run")
    start(tmp_path, tree)
    assert_same_end(tmp_path / "run", tmp_path / "undisturbed", steps)
    assert not list((tmp_path / "run/checkpoints").glob("*.tmp-*"))


@contextlib.contextmanager
def long_run(data, tmp_path, number, handler, **changes):
    """A run, some steps after its start, that only signals end; it starts with this handler of signal `number`."""
    tree = config_of(data, tmp_path / "run", **dict(steps=100_000, every=0) | changes)
    process = subprocess.Popen([BIN / "train", "--config", write_yaml(tmp_path / "run.yaml", tree)],
                               stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(number, handler))
    try:
        wait_for(lambda: (tmp_path / "run/metrics.jsonl").exists() and len(metrics_of(tmp_path / "run")) > 3)
        yield process
    finally:
        process.kill()
        process.wait()


def assert_saved_and_stopped(process, tmp_path, code):
    """Returns the last step, which the one checkpoint is of."""
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    last = metrics_of(tmp_path / "run")[-1]["step"]
    assert checkpoints_of(tmp_path / "run") == [f"step_{last:08}"]
    return last


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
