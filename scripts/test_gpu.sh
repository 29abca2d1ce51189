#!/usr/bin/env bash
# Tests the CUDA backend on a machine with a GPU, into build-gpu/: builds it, runs every test with
# the label `gpu`, launches every op many times to see the same bits, and runs the ops' tests under
# compute-sanitizer. Installs nothing; prints a table at the end and fails when anything failed.
#
#   scripts/test_gpu.sh [OPTION...] [-- CMAKE-ARGUMENT...]
#
#   --no-build      take build-gpu/ as it is
#   --only-build    build, run nothing
#   --only-tests    build and run the tests, leave out the rest
#   --sanitizers    build and run compute-sanitizer alone
#   --only REGEX    of the tests and test programs, those whose name it fits, such as scan
#   --launches N    launches of every op in the test of equal bits; 0 leaves it out (default 1000)
#   --tools LIST    of compute-sanitizer (default memcheck,racecheck,synccheck)
#   --jobs N        tests that share the GPU (default 4)
#   --limit S       seconds for each test program, 3 times that for all of ctest (default 300)
#
# Libraries that are not in the system's folders are found by PKG_CONFIG_PATH,
# PKG_CONFIG_SYSROOT_DIR and CMAKE_PREFIX_PATH. The tests in Python run under JIBOIA_PYTHON, by
# default python3 where that has pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/common.sh

usage() {
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
}

build=yes run=yes tests=yes only=. launches=1000 tools=memcheck,racecheck,synccheck jobs=4 limit=300
while [ $# -gt 0 ]; do
  case $1 in
    --no-build) build= ;;
    --only-build) run= ;;
    --only-tests) launches=0 tools= ;;
    --sanitizers) tests='' launches=0 ;;
    --only | --launches | --tools | --jobs | --limit)
      [ $# -ge 2 ] || { echo "$1 wants a value; see $0 --help" >&2 && exit 2; }
      declare "${1#--}=$2"
      shift
      ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) echo "unknown option '$1'; see $0 --help" >&2 && exit 2 ;;
  esac
  shift
done

folder='build-gpu'
logs=$folder/gpu-logs
mkdir -p "$logs"
rm -f "$logs"/*
results=$logs/results
: >"$results"

# record NAME COMMAND...: runs a command into its log and notes how it ended.
record() {
  local name=$1 log=$logs/${1//[\/ ]/-}.log begin=$SECONDS code=0
  shift
  "$@" >"$log" 2>&1 </dev/null || code=$?
  local result=failed
  case $code in
    0) result=passed ;;
    77) result=skipped code=0 ;;  # left out here, by the program's own word
    124 | 137) result='timed out' ;;
  esac
  printf '%s\t%s\t%d\t%s\n' "$name" "$result" $((SECONDS - begin)) "$log" >>"$results"
  echo "$name: $result"
  return "$code"
}

finish() {
  local name result seconds log failed=0
  while IFS=$'\t' read -r name result seconds log; do
    [[ $result == passed || $result == skipped ]] && continue
    failed=1
    printf '\n---- %s: %s, the end of %s\n' "$name" "$result" "$log"
    tail -n 40 "$log"
  done <"$results"
  printf '\n%-50s %-10s %s\n' what result seconds
  while IFS=$'\t' read -r name result seconds log; do
    printf '%-50s %-10s %7s\n' "$name" "$result" "$seconds"
  done <"$results"
  [ -s "$results" ] || { echo 'nothing was run' && failed=1; }
  exit "$failed"
}

if [ -n "$build" ]; then
  python=${JIBOIA_PYTHON:-$(command -v python3 || true)}
  if [ -z "$python" ] || ! "$python" -c 'import pytest' 2>/dev/null; then
    echo 'No Python with pytest: its tests are left out'
    python=
  fi
  record configure cmake --preset gpu "-DJIBOIA_PYTHON=$python" "$@" || finish
  record build cmake --build --preset gpu --target gpu_tests || finish
fi
[ -n "$run" ] || finish

export JIBOIA_REQUIRE_GPU=1
record gpu "$folder/tests/gpu_probe" || finish
cat "$logs/gpu.log"

if [ -n "$tests" ]; then
  record tests timeout $((3 * limit)) ctest --preset gpu --parallel "$jobs" -R "$only" || true
  cat "$logs/tests.log"
fi

# The test programs of ops and of what they stand on, which tools can look into.
mapfile -t programs < <(ctest --preset gpu -R "$only" --show-only=json-v1 | python3 -c '
import json, sys
for test in json.load(sys.stdin)["tests"]:
    if test["name"].startswith(("gpu/kernels/", "gpu/core/")):
        print(test["name"].removeprefix("gpu/"), test["command"][0])')

# all WHAT COMMAND...: runs the command with every program, several at a time.
all() {
  local what=$1 entry
  shift
  for entry in "${programs[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do
      wait -n || true
    done
    record "$what ${entry%% *}" timeout --kill-after=10 "$limit" "$@" "${entry#* }" \
      '--gtest_filter=*Cuda.*' --gtest_brief=1 || true &
  done
  wait
}

if [ "$launches" -gt 0 ]; then
  JIBOIA_SMALL_SHAPES=1 JIBOIA_GPU_LAUNCHES=$launches all "$launches launches"
fi

sanitizer=$(command -v compute-sanitizer || true)
for candidate in /usr/local/cuda/bin /usr/local/cuda/compute-sanitizer "${CUDA_PATH:-}/bin"; do
  [ -n "$sanitizer" ] || [ ! -x "$candidate/compute-sanitizer" ] ||
    sanitizer=$candidate/compute-sanitizer
done
export JIBOIA_SMALL_SHAPES=1 JIBOIA_GPU_LAUNCHES=1

# examine TOOL PROGRAM ARGUMENT...: runs a test program under one of the sanitizer's tools.
# shellcheck disable=SC2317  # it is called by name, through "all"
examine() {
  local tool=$1 code=0 log
  shift
  local check=("$sanitizer" --tool "$tool" --error-exitcode 99)
  if [ "$tool" = memcheck ]; then
    # Some tests want the errors that calls return.
    "${check[@]}" --print-limit 1000 --report-api-errors no "$@"
    return
  fi
  check+=(--num-cuda-barriers 1024)  # two for each of our blocks
  # Our kernels alone: the libraries' take long, and synchronise by means that racecheck misreads.
  log=$(mktemp)
  "${check[@]}" --print-limit 1000 --kernel-name kns=jiboia "$@" >"$log" 2>&1 || code=$?
  if grep -q 'Internal Sanitizer Error' "$log"; then
    # The tool cannot leave out some of cuBLASLt's kernels: look at all, and judge ours.
    code=0
    "${check[@]}" --print-limit 100000 "$@" >"$log" 2>&1 || code=$?
    if [ "$code" = 99 ] && ! grep -qE 'Internal Sanitizer Error|FAILED|Failure' "$log" &&
      ! grep -E '(Race|Barrier).*(reported|error)' "$log" | grep -q jiboia; then
      echo "Hazards in the libraries' kernels alone"
      code=0
    fi
  fi
  cat "$log"
  rm -f "$log"
  return "$code"
}
export -f examine
export sanitizer

# What loses the GPU on purpose is not looked into.
mapfile -t programs < <(printf '%s\n' "${programs[@]}" | grep -vE '^$|^core/cuda_faults' || true)
for tool in ${tools//,/ }; do
  if [ -z "$sanitizer" ]; then
    record "$tool" bash -c 'echo "compute-sanitizer was not found" && exit 1' || true
    continue
  fi
  # Reads behind the end of a tensor show only where its memory ends, too.
  JIBOIA_EXACT_BUFFERS=1 all "$tool" bash -c 'examine "$@"' - "$tool"
done
finish
