#!/usr/bin/env bash
# Installs the distribution packages that a task needs, where they are missing. Never asks.
#
#   scripts/install_dependencies.sh build   compile the programs and the benchmarks
#   scripts/install_dependencies.sh data    prepare data in a private Python environment
#   scripts/install_dependencies.sh test    compile and run the tests
#   scripts/install_dependencies.sh lint    check the sources' format
#   scripts/install_dependencies.sh lists   refresh apt's package lists, install nothing
#
# Several may be named. Debian 12 and Ubuntu 24.04 use the same package names. Installing takes root
# or sudo without a password; with neither, the command to run is printed and the exit code is 2.
set -euo pipefail

usage() {
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
}

build_packages=(
  cmake g++ ninja-build pkg-config
  libcli11-dev libeigen3-dev libfmt-dev libhdf5-dev libpcre2-dev libutf8proc-dev libxxhash-dev
  libyaml-cpp-dev nlohmann-json3-dev
)
data_packages=(ca-certificates python3 python3-venv)
test_packages=(libgmock-dev libgtest-dev)
if grep -qx 'ID=debian' /etc/os-release; then
  test_packages+=(python3-torch)  # Ubuntu 24.04 has none: see scripts/test.sh
fi
lint_packages=(clang-format-14 python3)

packages=()
lists_only=
for task in "${@:---help}"; do
  case $task in
    build) packages+=("${build_packages[@]}") ;;
    data) packages+=("${data_packages[@]}") ;;
    test) packages+=("${build_packages[@]}" "${data_packages[@]}" "${test_packages[@]}") ;;
    lint) packages+=("${lint_packages[@]}") ;;
    lists) lists_only=yes ;;
    -h | --help) usage && exit 0 ;;
    *) echo "unknown task '$task'; see $0 --help" >&2 && exit 2 ;;
  esac
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "This is neither Debian nor Ubuntu: nothing installed; needed are: ${packages[*]}" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null || true)
  [[ $status == *"installed"* && $status != *"not-installed"* ]] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ] && [ -z "$lists_only" ]; then
  exit 0
fi

apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300
     -o Dpkg::Use-Pty=0 -o Acquire::Retries=3)
if [ "$(id -u)" -ne 0 ]; then
  if ! sudo -n true 2>/dev/null; then
    echo "Packages cannot be installed without root or a sudo that asks no password. Run:" >&2
    if [ -n "$lists_only" ]; then
      echo "  sudo apt-get update" >&2
    else
      echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
    fi
    exit 2
  fi
  apt=(sudo -n "${apt[@]}")
fi

install_missing() {
  "${apt[@]}" install --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}
knows_all_missing() {
  local package
  for package in "${missing[@]}"; do
    apt-cache show --no-all-versions "$package" >/dev/null 2>&1 || return 1
  done
}

if [ -n "$lists_only" ] || ! knows_all_missing; then
  "${apt[@]}" update </dev/null
fi
if [ ${#missing[@]} -gt 0 ]; then
  echo "Installing ${#missing[@]} packages: ${missing[*]}"
  # A mirror may have moved on since the lists were fetched: fetch them again and retry once.
  install_missing || { "${apt[@]}" update </dev/null && install_missing; }
fi
