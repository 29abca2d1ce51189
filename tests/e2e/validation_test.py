"""What a run says about held-out text is what `evaluate` says about its model."""

import json

import pytest
from programs import run
from tiny_run import config_of, metrics_of, start, write_data

ROWS = 5  # of the validation data


@pytest.mark.parametrize("rows", [2, 0])
def test_validation_scores_the_first_rows(tmp_path, rows):
    data, folder = write_data(tmp_path / "data"), tmp_path / "run"
    said = start(tmp_path, config_of(data, folder, 2, eval__every=2, eval__max_rows=rows)).stderr
    assert f"(the first {rows} of {ROWS} rows)" in said if rows else "the first" not in said
    score = json.loads(run("evaluate", "--model", folder, "--data", data / "validation", "--max-rows", rows,
                           "--json").stdout)
    assert score["rows"] == (rows or ROWS)
    assert metrics_of(folder)[-1]["eval/loss"] == pytest.approx(score["loss"], rel=1e-6)
