"""Judging several pairs of training runs together."""

import json
import statistics

import pytest

import compare_training


def write_pair(folder, ours, theirs):
    folder.mkdir(parents=True)
    for name, losses in (("metrics.jsonl", ours), ("peer_metrics.jsonl", theirs)):
        lines = [{"step": i + 1, "train/loss": loss, "perf/step_s": 0.1} for i, loss in enumerate(losses)]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def pool(monkeypatch, *arguments):
    """The exit status."""
    monkeypatch.setattr("sys.argv", ["compare_training.py", "pool", *map(str, arguments)])
    with pytest.raises(SystemExit) as ending:
        compare_training.main()
    return ending.value.code


@pytest.fixture
def pairs(tmp_path):
    """Ours against theirs in the last half: +2 %, -1 %, +0.2 %. Before, they are far apart."""
    return [write_pair(tmp_path / str(i), [9.0] * 20 + [5 * (1 + p / 100)] * 20, [8.0] * 20 + [5.0] * 20)
            for i, p in enumerate((2.0, -1.0, 0.2))]


def test_mean_difference_counts_not_that_of_one_pair(pairs, tmp_path, monkeypatch, capsys):
    output = tmp_path / "pooled"
    assert pool(monkeypatch, *pairs, "--output", output, "--last", 20) == 0
    result = json.loads((output / "pooled.json").read_text(encoding="utf-8"))
    assert [run["percent"] for run in result["runs"]] == pytest.approx([2, -1, 0.2])
    spread = statistics.stdev([2, -1, 0.2])
    assert result["percent"] == pytest.approx(
        {"mean": 0.4, "standard_deviation": spread, "standard_error": spread / 3 ** 0.5})
    assert (output / "pooled.png").stat().st_size > 0
    assert "within 0.5 %" in capsys.readouterr().out


def test_means_apart_are_a_failure(pairs, tmp_path, monkeypatch, capsys):
    assert pool(monkeypatch, *pairs, "--output", tmp_path / "pooled", "--last", 20, "--limit", 0.3) == 1
    assert "NOT within 0.3 %" in capsys.readouterr().out


def test_only_the_last_steps_count(pairs, tmp_path, monkeypatch):
    assert pool(monkeypatch, *pairs, "--output", tmp_path / "pooled", "--last", 40) == 1


def test_runs_of_different_lengths_are_refused(pairs, tmp_path, monkeypatch):
    short = write_pair(tmp_path / "short", [5.0] * 30, [5.0] * 30)
    assert "30, 40" in pool(monkeypatch, *pairs, short, "--output", tmp_path / "pooled")
    assert pool(monkeypatch, *pairs, short, "--output", tmp_path / "pooled", "--steps", 30, "--last", 10) == 0
    assert "30, 40" in pool(monkeypatch, *pairs, short, "--output", tmp_path / "pooled", "--steps", 31)


def test_one_pair_has_no_spread(pairs, tmp_path, monkeypatch):
    assert "two or more" in pool(monkeypatch, pairs[0], "--output", tmp_path / "pooled")
