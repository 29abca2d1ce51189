"""The commands of a recipe's how_to_get that are more than a call of a program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import yaml

CONFIGS = Path(os.environ["JIBOIA_SOURCE_DIR"]) / "configs"


def test_refinedweb_becomes_json_lines(tmp_path):
    recipe = yaml.safe_load((CONFIGS / "mamba7b-rw.yaml").read_text(encoding="utf-8"))
    commands = recipe["data"]["how_to_get"].splitlines()
    local = [line for line in commands if line.startswith(("mkdir ", "python -c "))]
    assert len(local) == 2

    texts = {"train-0": ["Um.\nDois.", 'aspas "e" {chaves}'], "train-1": ["ção 🐍"]}
    folder = tmp_path / "downloads/refinedweb/data"
    folder.mkdir(parents=True)
    for name, content in texts.items():
        table = pyarrow.table({"url": ["u"] * len(content), "content": content})
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
    script = f'set -e\npython() {{ "{sys.executable}" "$@"; }}\n' + "\n".join(local)
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)

    written = sorted((tmp_path / "downloads/refinedweb-jsonl").iterdir())
    assert [path.name for path in written] == ["train-0.jsonl", "train-1.jsonl"]
    for path in written:
        documents = [json.loads(line) for line in path.read_text().splitlines()]
        assert documents == [{"content": text} for text in texts[path.stem]]
