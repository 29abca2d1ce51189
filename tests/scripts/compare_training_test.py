"""Judging several pairs of training runs together."""

import json
import statistics

import pytest

import compare_training


def write_pair(folder, ours, theirs, lr=1e-3):
    folder.mkdir(parents=True)
    for name, losses, rate in (("metrics.jsonl", ours, 1e-3), ("peer_metrics.jsonl", theirs, lr)):
        lines = [{"step": i + 1, "train/loss": loss, "train/lr": rate, "perf/step_s": 0.1}
                 for i, loss in enumerate(losses)]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def pool(monkeypatch, *arguments):
    """The exit status."""
    monkeypatch.setattr("sys.argv", ["compare_training.py", "pool", *map(str, arguments)])
    with pytest.raises(SystemExit) as ending:
        compare_training.main()
    return ending.value.code


def write_pairs(folder, percents):
    """Ours against theirs in the last 20 of 40 steps; before, they are far apart."""
    return [write_pair(folder / str(i), [9.0] * 20 + [5 * (1 + p / 100)] * 20, [8.0] * 20 + [5.0] * 20)
            for i, p in enumerate(percents)]


@pytest.mark.parametrize("percents, code, words", [
    ((0.3, -0.1, 0.1), 0, "within 0.5 %"),  # 0.1 with a standard error of 0.115
    ((2.0, -1.0, 0.2), 3, "too far from each other"),  # 0.4 with 0.872
    ((-2.0, -1.6, -1.8), 1, "NOT within"),
])
def test_mean_and_its_error_decide(tmp_path, monkeypatch, capsys, percents, code, words):
    output = tmp_path / "pooled"
    assert pool(monkeypatch, *write_pairs(tmp_path, percents), "--output", output, "--last", 20) == code
    result = json.loads((output / "pooled.json").read_text(encoding="utf-8"))
    assert [run["last_mean_loss"]["percent"] for run in result["runs"]] == pytest.approx(percents)
    assert all(run["first_loss"]["percent"] == pytest.approx(12.5) for run in result["runs"])
    spread = statistics.stdev(percents)
    assert result["percent"] == pytest.approx({"mean": statistics.mean(percents), "standard_deviation": spread,
                                               "standard_error": spread / 3 ** 0.5})
    assert (output / "pooled.png").stat().st_size > 0
    assert words in capsys.readouterr().out


def test_limit_and_last_steps_count(tmp_path, monkeypatch):
    pairs = write_pairs(tmp_path, (0.3, -0.1, 0.1))
    assert pool(monkeypatch, *pairs, "--output", tmp_path / "pooled", "--last", 20, "--limit", 0.2) == 3
    assert pool(monkeypatch, *pairs, "--output", tmp_path / "pooled", "--last", 40) == 1


def test_what_does_not_belong_together_is_refused(tmp_path, monkeypatch, capsys):
    pairs = write_pairs(tmp_path, (0.5, -0.3, 0.1))

    def refused(*arguments):
        assert pool(monkeypatch, *arguments, "--output", tmp_path / "pooled") == 2
        assert not (tmp_path / "pooled").exists()
        return capsys.readouterr().err

    short = write_pair(tmp_path / "short", [5.0] * 30, [5.0] * 30)
    assert "[30, 40] steps" in refused(*pairs, short)
    assert "[30, 40] steps" in refused(*pairs, short, "--steps", 31)
    assert "three different folders" in refused(*pairs[:2])
    assert "three different folders" in refused(*pairs, pairs[0])
    other = write_pair(tmp_path / "other", [5.0] * 40, [5.0] * 40, lr=2e-3)
    assert "learning rate 0.001 in metrics.jsonl and 0.002" in refused(*pairs, other)
    assert "metrics.jsonl" in refused(*pairs, tmp_path)
    assert pool(monkeypatch, *pairs, short, "--output", tmp_path / "pooled", "--steps", 30, "--last", 10) == 0
    assert pool(monkeypatch, *pairs, "--output", tmp_path / "pooled", "--last", 0) == 2


@pytest.mark.parametrize("edit, words", [
    (lambda lines: lines[::-1], ":1: step 40, expected 1"),
    (lambda lines: lines[:4] + lines[5:], ":5: step 6, expected 5"),
    (lambda lines: lines[:-1] + ['{"step": 40, "tra'], ":40: no line"),
    (lambda lines: lines[:-1] + ["[]"], ":40: no line"),
    (lambda lines: lines[:-1] + ['{"step": 40, "train/loss": NaN}'], ":40: the loss is nan"),
    (lambda lines: [], "no steps"),
])
def test_damaged_metrics_are_refused(tmp_path, monkeypatch, capsys, edit, words):
    pairs = write_pairs(tmp_path, (0.3, -0.1, 0.1))
    path = pairs[1] / "peer_metrics.jsonl"
    path.write_text("\n".join(edit(path.read_text(encoding="utf-8").splitlines())), encoding="utf-8")
    assert pool(monkeypatch, *pairs, "--output", tmp_path / "pooled") == 2
    assert f"{path}" in (said := capsys.readouterr().err) and words in said
