"""What a run does about bad input, numerics and surroundings: a clear message, the right exit code, nothing lost."""

import json
import os
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
from programs import BIN, SOURCE, run, write_rows, write_yaml
from safetensors.numpy import load_file, save_file
from tiny_run import VOCAB, assert_same_end, checkpoints_of, config_of, metrics_of, start, tensors_of, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def finished(data, tmp_path):
    start(tmp_path, config_of(data, tmp_path / "run", steps=4, every=2))
    return tmp_path / "run"


def test_a_finished_run_says_so(finished, data, tmp_path):
    before = tensors_of(finished, 4)
    said = start(tmp_path, config_of(data, finished, steps=4, every=2)).stderr
    assert "is finished" in said
    assert tensors_of(finished, 4) == before and len(metrics_of(finished)) == 4


def test_no_resume_refuses_a_folder_with_checkpoints(finished, data, tmp_path):
    said = start(tmp_path, config_of(data, finished, steps=9), "--no-resume", code=2).stderr
    assert "holds checkpoints" in said
    start(tmp_path, config_of(data, tmp_path / "fresh", steps=1), "--no-resume")


def test_missing_data_names_the_commands_that_get_it(tmp_path):
    for name in ["mambarim110m", "mambarim110m-card", "mamba130m", "mamba7b-rw"]:
        said = run("train", "--config", SOURCE / f"configs/{name}.yaml", "--set", f"output_dir={tmp_path / 'run'}",
                   code=3, cwd=tmp_path).stderr
        assert "does not exist" in said and "prepare_data.py" in said, said


@pytest.mark.parametrize("option", ["--plan", "--print-config"])
def test_planning_and_printing_need_no_data(option, tmp_path):
    for path in sorted((SOURCE / "configs").glob("*.yaml")):
        assert run("train", "--config", path, option, cwd=tmp_path).stdout
    assert list(tmp_path.iterdir()) == []


def test_fewer_rows_than_a_global_batch(data, tmp_path):
    said = start(tmp_path, config_of(data, tmp_path / "run", train__micro_batch_size=2, train__global_batch_size=38),
                 code=3).stderr
    assert "37" in said and "38" in said, said
    start(tmp_path, config_of(data, tmp_path / "one", steps=2, train__micro_batch_size=37, train__global_batch_size=37))


def test_a_run_that_does_not_fit_leaves_nothing(data, tmp_path):
    rows = 1 << 20
    tree = config_of(data, tmp_path / "run", train__micro_batch_size=rows, train__global_batch_size=rows,
                     data__seq_len=1 << 16)
    assert "lower train.micro_batch_size" in start(tmp_path, tree, code=1).stderr
    assert not (tmp_path / "run").exists()


def test_validating_on_the_training_data_is_warned_about(data, tmp_path):
    tree = config_of(data, tmp_path / "run", steps=1, data__validation=data / "train")
    assert "warning: data.validation holds the same tokens" in start(tmp_path, tree).stderr
    assert "same tokens" not in start(tmp_path, config_of(data, tmp_path / "other", steps=1)).stderr


def test_an_output_folder_that_cannot_be_used_is_refused_at_the_start(data, tmp_path):
    (tmp_path / "file").write_text("")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for output in [tmp_path / "file", tmp_path / "file" / "below", loop / "below", "/proc/jiboia"]:
        said = start(tmp_path, config_of(data, output), code=7).stderr
        assert str(output).split("/")[-1] in said, said


def test_two_runs_do_not_share_a_folder(data, tmp_path):
    config = write_yaml(tmp_path / "run.yaml", config_of(data, tmp_path / "run", steps=100_000, every=0))
    first = subprocess.Popen([BIN / "train", "--config", config], stderr=subprocess.PIPE, text=True)
    for line in first.stderr:
        if "step 1/" in line:
            break
    said = run("train", "--config", config, code=4).stderr
    assert str(first.pid) in said, said
    first.kill()
    first.communicate()


def spoil(folder, name, value):
    """Puts one bad value into a model's weights."""
    weights = load_file(folder / "model.safetensors")
    weights[name].reshape(-1)[3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_ends_the_run(value, finished, data, tmp_path):
    start_folder = tmp_path / "exported"
    run("export", "--checkpoint", finished, "--output", start_folder)
    spoil(start_folder, "backbone.layers.0.mixer.out_proj.weight", value)
    tree = config_of(data, tmp_path / "again", init_from=start_folder)
    said = start(tmp_path, tree, code=5).stderr
    assert "backbone.layers.0.mixer.out_proj.weight" in said  # the warning on loading
    assert "numerics: step 1" in said
    assert checkpoints_of(tmp_path / "again") == []


def test_damaged_first_weights_are_refused(finished, data, tmp_path):
    start(tmp_path, config_of(data, tmp_path / "good", steps=1, init_from=finished))  # a run's folder will do
    path = finished / "checkpoints/step_00000004/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    said = start(tmp_path, config_of(data, tmp_path / "again", init_from=path.parent), code=4).stderr
    assert "model.safetensors" in said


def test_a_learning_rate_beyond_reason_ends_the_run_and_keeps_what_was_good(finished, data, tmp_path):
    before = tensors_of(finished, 4)
    said = start(tmp_path, config_of(data, finished, steps=50, every=100, optim__lr=1e20), code=5).stderr
    assert "train: numerics: " in said
    assert tensors_of(finished, 4) == before
    # The last good checkpoint still goes on.
    start(tmp_path, config_of(data, finished, steps=6, every=100))


def test_a_checkpoint_goes_only_after_the_next_step_went_well(finished, data, tmp_path):
    """Weights can be finite and lost: then the checkpoint before must still be there."""
    start(tmp_path, config_of(data, finished, steps=50, every=1, checkpoint__keep=1, optim__lr=1e20), code=5)
    assert len(checkpoints_of(finished)) >= 2
    for name in checkpoints_of(finished)[1:]:
        shutil.rmtree(finished / "checkpoints" / name)
    start(tmp_path, config_of(data, finished, steps=6, every=1, checkpoint__keep=1))
    assert checkpoints_of(finished) == ["step_00000006"]


def test_weights_that_are_not_finite_are_never_saved(data, tmp_path):
    said = start(tmp_path, config_of(data, tmp_path / "run", steps=1, eval__every=0, optim__lr=1e30,
                                     optim__weight_decay=1e30), code=5).stderr
    assert "not finite any more" in said
    assert checkpoints_of(tmp_path / "run") == []


def test_a_configuration_in_the_output_folder_is_left_alone(data, tmp_path):
    (tmp_path / "run").mkdir()
    path = write_yaml(tmp_path / "run/config.yaml", config_of(data, tmp_path / "run", steps=1))
    text = path.read_text()
    run("train", "--config", path)
    assert path.read_text() == text
    assert "max_steps: 1" in (tmp_path / "run/resolved_config.yaml").read_text()
    assert "commit" in (tmp_path / "run/version.txt").read_text()


def test_surroundings_change_nothing(data, finished, tmp_path):
    odd = tmp_path / "água e\nsal"
    odd.mkdir()
    tree = config_of(data, odd / "run", steps=4, every=2)
    environment = {"LC_ALL": "pt_BR.UTF-8", "TZ": "Pacific/Chatham", "PATH": os.environ["PATH"]}
    start(tmp_path, tree, env=environment, umask=0o077)
    assert_same_end(odd / "run", finished, 4)
    assert oct((odd / "run/metrics.jsonl").stat().st_mode & 0o777) == "0o600"


def test_torn_and_later_metrics_are_replaced(finished, data, tmp_path):
    path = finished / "metrics.jsonl"
    lines = path.read_bytes()
    start(tmp_path, config_of(data, tmp_path / "whole", steps=6, every=2, optim__lr=3e-3))
    for damage in [b'{"step": 5, "train/lo', b'{"step": 5, "train/loss": 99.0}\n', b'\xff\xfe\x00nonsense\n']:
        path.write_bytes(lines + damage)
        start(tmp_path, config_of(data, finished, steps=4, every=2))
        assert path.read_bytes() == lines


def test_data_is_read_again_when_it_changes_or_when_told(tmp_path):
    data = write_data(tmp_path / "data")
    time.sleep(2.1)  # files that changed a moment ago are always read

    def said(name, *arguments, code=0):
        env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        return start(tmp_path, config_of(data, tmp_path / name, steps=1), *arguments, code=code, env=env).stderr
    unchanged = [f"{data / part}: 1 of 1 files have not changed" for part in ("train", "validation")]
    first = said("first")
    assert not any(words in first for words in unchanged)
    assert re.search(r"first step finished [\d.]+ s after the program's start: program [\d.]+ s, device", first)
    again = said("again")
    assert all(words in again for words in unchanged)
    told = said("told", "--verify-data")
    assert not any(words in told for words in unchanged)
    assert tensors_of(tmp_path / "again", 1) == tensors_of(tmp_path / "first", 1)
    shard = next((data / "train").glob("*.h5"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert "its contents have hash" in said("changed", code=3)
    assert not (tmp_path / "changed/metrics.jsonl").exists()


def test_changing_the_model_or_the_data_is_refused_and_the_recipe_is_not(finished, data, tmp_path):
    said = start(tmp_path, config_of(data, finished, steps=6, model__hidden_size=24), code=4).stderr
    assert "hidden_size" in said
    said = start(tmp_path, config_of(data, finished, steps=6, seed=4), code=4).stderr
    assert "seed" in said
    other = write_rows(tmp_path / "other", np.ones((40, 32), int), VOCAB)
    said = start(tmp_path, config_of(data, finished, steps=6, data__train=other), code=4).stderr
    assert "data" in said
    start(tmp_path, config_of(data, finished, steps=5, data__train=other), "--allow-data-change")
    said = start(tmp_path, config_of(data, finished, steps=7, optim__lr=1e-3), "--allow-data-change").stderr
    assert "optim.lr" in said


def test_damaged_checkpoints_are_rejected_loudly(finished, data, tmp_path):
    damaged = finished / "checkpoints/step_00000004/model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    said = start(tmp_path, config_of(data, finished, steps=4, every=100)).stderr
    assert "step_00000004" in said and "resumed from" in said and "step 2" in said, said
    for folder in (finished / "checkpoints").glob("step_*"):
        (folder / "model.safetensors").write_bytes(b"")
    said = start(tmp_path, config_of(data, finished, steps=4, every=100), code=4).stderr
    assert "step_00000002" in said and "step_00000004" in said


def test_tokens_outside_of_the_vocabulary_are_named(data, tmp_path):
    rows = np.full((8, 32), 5)
    rows[3, 7] = 70
    write_rows(tmp_path / "bad", rows, 71)
    said = start(tmp_path, config_of(data, tmp_path / "run", data__train=tmp_path / "bad"), code=3).stderr
    assert "61" in said and "71" in said, said


def test_evaluate_refuses_numbers_for_names_and_logits_that_are_none(finished, tmp_path):
    (tmp_path / "ids.json").write_text("[[1, 2, 3]]")
    arguments = ["--ids", tmp_path / "ids.json", "--logits", tmp_path / "out.safetensors"]
    for option in ("--device", "--precision"):
        refused = run("evaluate", "--model", finished, *arguments, option, "1", code=2).stderr
        assert "'1' is not one of" in refused
    run("export", "--checkpoint", finished, "--output", tmp_path / "exported")
    spoil(tmp_path / "exported", "backbone.norm_f.weight", float("nan"))
    assert "not finite" in run("evaluate", "--model", tmp_path / "exported", *arguments, code=5).stderr
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("seq_len", ["many", "32 tokens", "99999999999999999999", "-1", "0", ""])
def test_a_model_with_a_strange_trainer_state_is_refused(seq_len, finished, data, tmp_path):
    run("export", "--checkpoint", finished, "--output", tmp_path / "exported")
    state = json.loads((finished / "checkpoints/step_00000004/trainer_state.json").read_text())
    state["config"]["data.seq_len"] = seq_len
    (tmp_path / "exported/trainer_state.json").write_text(json.dumps(state))
    said = run("evaluate", "--model", tmp_path / "exported", "--data", data / "validation", code=4).stderr
    assert "trainer_state.json: data.seq_len" in said, said


def test_small_models_generate_and_score(finished, data, tmp_path):
    (tmp_path / "ids.json").write_text("[[1, 2, 3]]")
    run("evaluate", "--model", finished, "--ids", tmp_path / "ids.json", "--logits", tmp_path / "out.safetensors")
    logits = load_file(tmp_path / "out.safetensors")["logits"]
    assert logits.shape == (1, 3, VOCAB) and np.isfinite(logits).all()
    for bad in ["[[1, 61]]", "[[1], [2, 3]]", "[[-1]]", "[]", "{}", "[[1.5]]", "[[true]]"]:
        (tmp_path / "ids.json").write_text(bad)
        run("evaluate", "--model", finished, "--ids", tmp_path / "ids.json", "--logits", tmp_path / "no", code=3)
    (tmp_path / "ids.json").write_text("[[]]")
    said = run("evaluate", "--model", finished, "--ids", tmp_path / "ids.json", "--logits", tmp_path / "no", code=3)
    assert "list 0 is empty" in said.stderr
    assert not (tmp_path / "no").exists()
    scored = run("evaluate", "--model", finished, "--data", data / "validation", "--json").stdout
    assert '"targets": 155' in scored  # 5 rows of 32 tokens, 31 targets each
