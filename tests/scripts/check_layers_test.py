"""The layer rule: it holds in this repository, and the checker sees when it is broken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE_DIR = Path(os.environ["JIBOIA_SOURCE_DIR"])


def check(root):
    return subprocess.run(
        [sys.executable, SOURCE_DIR / "scripts/check_layers.py", root],
        capture_output=True, text=True, check=False,
    )


def test_repository_keeps_the_rule():
    result = check(SOURCE_DIR)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "path, line",
    [
        ("core/a.h", '#include "kernels/linear/linear.h"'),
        ("kernels/linear/a.cpp", '#include "autograd/tape.h"'),
        ("autograd/a.h", '#  include "kernels/ops.h"'),
        ("data/a.cpp", '#include "train/config.h"'),
        ("data/a.h", "#include <hdf5.h>"),
        ("data/a.h", "#include <H5public.h>"),
        ("train/a.h", "#include <yaml-cpp/yaml.h>"),
        ("core/a.h", "#include <cuda_runtime.h>"),
        ("train/comm/a.h", "#include <nccl.h>"),
        ("train/comm/a.h", "#include <mpi.h>"),
        ("kernels/a.h", "#include <Eigen/Core>"),
        ("core/a.cpp", '#include "neighbour.h"'),
        ("train/a.cpp", '#include "../core/error.h"'),
        ("train/a.cpp", '#include "tests/support/tiny_model.h"'),
        ("core/a.cpp", '#include "elsewhere.h"'),
    ],
)
def test_an_offence_is_found_and_named(tmp_path, path, line):
    source = tmp_path / path
    source.parent.mkdir(parents=True)
    source.write_text(f"// first\n{line}\n")
    (source.parent / "neighbour.h").touch()
    result = check(tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    "path, line",
    [
        ("core/a.h", '#include "core/error.h"'),
        ("train/tools/a.cpp", '#include "jiboia_commit.h"'),
        ("train/a.cpp", '#include "kernels/ops.h"'),
        ("data/a.cpp", "#include <hdf5.h>"),
        ("core/cuda/a.cuh", "#include <cuda_runtime.h>"),
        ("core/a.h", '// #include "train/trainer.h" would be wrong'),
        ("tests/a.cpp", '#include "train/config.h"'),
    ],
)
def test_what_is_allowed_passes(tmp_path, path, line):
    source = tmp_path / path
    source.parent.mkdir(parents=True)
    source.write_text(line + "\n")
    assert check(tmp_path).returncode == 0
