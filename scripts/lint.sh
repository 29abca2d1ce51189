#!/usr/bin/env bash
# Checks the form of the sources: C++ format, layers, Python and shell syntax. Changes nothing.
#   scripts/lint.sh         check
#   scripts/lint.sh --fix   also rewrite C++ files in the project's format
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/install_dependencies.sh lint
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

mapfile -t cpp_files < <(git ls-files --cached --others --exclude-standard -- \
  '*.h' '*.cpp' '*.cu' '*.cuh')
mapfile -t python_files < <(git ls-files --cached --others --exclude-standard -- '*.py')
mapfile -t shell_files < <(git ls-files --cached --others --exclude-standard -- '*.sh' .ci/run)
check "${format[@]}" "${cpp_files[@]}"
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
