#!/usr/bin/env bash
# Builds the programs into build/bin/ for this machine's CPU, and for its GPUs where there is nvcc,
# after installing what that needs. CMake arguments may follow: scripts/build.sh -DJIBOIA_CUDA=OFF
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/common.sh

scripts/install_dependencies.sh build
cmake --preset release --log-level=WARNING -DJIBOIA_NATIVE=ON "$@"
cmake --build --preset release
programs=$(ls build/bin)
echo "In build/bin/: ${programs//$'\n'/ }"
if ! grep -q '^JIBOIA_CUDA:[A-Z]*=OFF$' build/CMakeCache.txt && ! build/bin/train --version | grep -q '^CUDA yes'; then
  echo "Without a CUDA backend, so for the CPU alone: no nvcc of CUDA 13 or later was found."
fi
