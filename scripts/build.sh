#!/usr/bin/env bash
# Builds the programs into build/bin/ for this machine's CPU, after installing what that needs.
# CUDA is looked for only where a GPU answers. CMake arguments may follow: scripts/build.sh -DX=Y
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/common.sh

scripts/install_dependencies.sh build
cuda=OFF
if nvidia-smi >/dev/null 2>&1; then
  cuda=AUTO
fi
cmake --preset release --log-level=WARNING -DJIBOIA_NATIVE=ON -DJIBOIA_CUDA="$cuda" "$@"
cmake --build --preset release
programs=$(ls build/bin)
echo "In build/bin/: ${programs//$'\n'/ }"
