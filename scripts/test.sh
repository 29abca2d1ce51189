#!/usr/bin/env bash
# Runs every test that this machine can run, after installing what they need, checking the form of
# the sources and building with warnings as errors into build-test/. CTest arguments may follow: scripts/test.sh -R checkpoint
# Left out: label `large`, a shard above 4 GiB, which takes its time and disk. Whoever changes how
# data/ reads shards runs it afterwards: ctest --test-dir build-test -L large
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' scripts/test.sh && exit 0 ;;
esac
. scripts/common.sh

scripts/install_dependencies.sh test
scripts/lint.sh
# The reference is the distribution's CPU build of torch. Ubuntu 24.04 has none: there it is
# PyTorch's CPU build or, where that index cannot be reached, PyPI's, which takes 5.6 GB.
python_environment build-test/venv scripts/requirements-test.txt --system-site-packages
if ! build-test/venv/bin/python -c 'import torch' 2>/dev/null; then
  torch=(build-test/venv/bin/python -m pip install --quiet torch==2.6.0)
  "${torch[@]}" --index-url https://download.pytorch.org/whl/cpu || "${torch[@]}"
fi
# Without a GPU the kernels are compiled for the oldest GPUs that they are for, and the newest.
architectures=()
nvidia-smi >/dev/null 2>&1 || architectures=('-DCMAKE_CUDA_ARCHITECTURES=80;90a')
cmake --preset ci --log-level=WARNING "${architectures[@]}"
cmake --build --preset ci
ctest --preset ci --parallel "$(nproc)" "$@"

# The same kernels on an emulated GPU, where their headers are: build servers have no GPU.
if emulated=$(cmake --preset emulated --log-level=WARNING 2>&1); then
  cmake --build --preset emulated --target gpu_tests
  ctest --preset emulated --parallel "$(nproc)" --no-tests=ignore "$@"
elif [[ $emulated == *cuda_runtime.h* ]]; then
  echo "No CUDA headers here: the GPU's kernels were not tested."
else
  echo "$emulated" >&2
  exit 1
fi
