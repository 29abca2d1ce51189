# shellcheck shell=bash
# What the scripts share; source it after `cd` to the repository root.

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONDONTWRITEBYTECODE=1
: "${CMAKE_BUILD_PARALLEL_LEVEL:=$(nproc)}"
export CMAKE_BUILD_PARALLEL_LEVEL
if command -v ccache >/dev/null; then
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
fi

# python_environment FOLDER REQUIREMENTS [venv options...]: a virtual environment with pinned
# packages, made once; made anew when the requirements or the system's Python change.
python_environment() {
  local folder=$1 requirements=$2
  shift 2
  local wanted
  wanted="$(/usr/bin/python3 --version) $* $(sha256sum <"$requirements")"
  if [ "$(cat "$folder/made-for" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  echo "Making the Python environment $folder"
  rm -rf "$folder"
  /usr/bin/python3 -m venv "$@" "$folder"
  local install=("$folder/bin/python" -m pip install --quiet --only-binary=:all: -r "$requirements")
  "${install[@]}" || { sleep 5 && "${install[@]}"; }
  echo "$wanted" >"$folder/made-for"
}
