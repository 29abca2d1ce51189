"""The GPU for tests in Python. A test that needs one has `cuda` in its name, calls require_gpu() first, and is
registered with jiboia_pytest(file GPU)."""

import os
import subprocess

import pytest


def require_gpu():
    """The GPU's name. Without one the test is skipped, or fails with JIBOIA_REQUIRE_GPU=1."""
    probe = os.path.join(os.environ["JIBOIA_BUILD_DIR"], "tests", "gpu_probe")
    result = subprocess.run([probe], capture_output=True, text=True, timeout=120, check=False)
    said = (result.stdout + result.stderr).strip()
    if result.returncode == 77 and os.environ.get("JIBOIA_REQUIRE_GPU", "0") in ("", "0"):
        pytest.skip(said)
    assert result.returncode == 0, f"a GPU is needed: {said}"
    return said


def is_emulated():
    """Whether the GPU is the emulator, which is slow: for choosing smaller shapes."""
    return require_gpu() == "emulated GPU"
