#!/usr/bin/env bash
# Checks the form of the sources: C++ format, layers, Python and shell syntax. Changes nothing.
# Where clang-format 14 cannot be installed, it says so and leaves out the format alone.
#   scripts/lint.sh         check
#   scripts/lint.sh --fix   also rewrite C++ files in the project's format
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

format=(clang-format-14 --dry-run -Werror)
case ${1:-} in
  '') ;;
  --fix) format=(clang-format-14 -i) ;;
  *) echo "unknown option '$1': only --fix is known" >&2 && exit 2 ;;
esac
failed=0
check() {
  "$@" || { echo "lint: failed: ${*:1:3} ..." >&2 && failed=1; }
}

# files PATTERN...: the sources whose names match, with no need of git.
files() {
  local names=(-name "$1") pattern
  for pattern in "${@:2}"; do
    names+=(-o -name "$pattern")
  done
  find core kernels autograd data train scripts tests -name '.?*' -prune -o -type f \
    \( "${names[@]}" \) -print | sort
}
mapfile -t cpp_files < <(files '*.h' '*.cpp' '*.cu' '*.cuh')
mapfile -t python_files < <(files '*.py')
mapfile -t shell_files < <(files '*.sh' && echo .ci/run)

scripts/install_dependencies.sh lint || true
if command -v clang-format-14 >/dev/null; then
  check "${format[@]}" "${cpp_files[@]}"
else
  echo "lint: clang-format-14 is not to be had here: the C++ format was not checked" >&2
fi
check python3 scripts/check_layers.py
bytecode=$(mktemp -d)
trap 'rm -rf "$bytecode"' EXIT
PYTHONPYCACHEPREFIX=$bytecode check python3 -m py_compile "${python_files[@]}"
for file in "${shell_files[@]}"; do
  check bash -n "$file"
done
if command -v shellcheck >/dev/null; then
  check shellcheck --external-sources "${shell_files[@]}"
fi
[ "$failed" -eq 0 ] && echo "lint: ${#cpp_files[@]} C++, ${#python_files[@]} Python and" \
  "${#shell_files[@]} shell files are in order"
exit "$failed"
