"""Running the programs from Python tests: commands, configurations, data."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pyarrow as arrow
import pyarrow.parquet as parquet

SOURCE = pathlib.Path(os.environ["JIBOIA_SOURCE_DIR"])
BIN = pathlib.Path(os.environ["JIBOIA_BUILD_DIR"]) / "bin"
# What the programs remember of verified data is the tests' own, not the user's.
CACHE = tempfile.TemporaryDirectory(prefix="jiboia-cache-")
os.environ["XDG_CACHE_HOME"] = CACHE.name


def run(program, *arguments, code=0, **options):
    """Runs a program, demands its exit code, and returns the finished process with its texts."""
    result = subprocess.run([str(BIN / program), *map(str, arguments)], capture_output=True, text=True, **options)
    assert result.returncode == code, f"{program} exited {result.returncode}, not {code}\n{result.stdout}{result.stderr}"
    return result


def write_yaml(path, tree):
    """Writes a configuration of two levels."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"  {k}: {scalar(v)}" for k, v in value.items()]
        else:
            lines.append(f"{key}: {scalar(value)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def scalar(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (pathlib.Path, str)) and not str(value).replace("_", "").isalnum():
        return json.dumps(str(value), ensure_ascii=False)
    return str(value)


def write_rows(folder, rows, vocab_size, *arguments):
    """Writes rows of tokens the way users do: from Parquet, through scripts/prepare_data.py."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    source = folder.parent / f"{folder.name}.parquet"
    parquet.write_table(arrow.table({"input_ids": arrow.array(rows.tolist(), arrow.list_(arrow.int32()))}), source)
    subprocess.run([sys.executable, SOURCE / "scripts/prepare_data.py", "parquet", source, "--output", folder,
                    "--vocab-size", str(vocab_size), *map(str, arguments)], check=True, capture_output=True)
    return folder
