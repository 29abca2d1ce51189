#!/usr/bin/env python3
"""Checks who includes whom.

Each folder may include only the folders listed in MAY_INCLUDE and the headers that the build writes,
and no header includes one of the libraries that must stay behind the project's own interfaces. Prints every offence as
file:line: text, and exits 1 when there is one.

usage: check_layers.py [ROOT]      (default: the repository that holds this script)
"""

import re
import sys
from pathlib import Path

MAY_INCLUDE = {
    "core": {"core"},
    "kernels": {"core", "kernels"},
    "autograd": {"core", "autograd"},
    "data": {"core", "data"},
    "train": {"core", "kernels", "autograd", "data", "train"},
}
GENERATED = {"jiboia_commit.h"}  # by scripts/cmake/commit.cmake
# Includes that a .h may not have: implementation details, slow to compile, absent on some machines.
HIDDEN_LIBRARIES = re.compile(
    r"^(cuda|cublas|curand|cooperative_groups|device_launch|driver_types|nccl|mpi\.h|mpi/|hdf5"
    r"|H5|yaml-cpp/|Eigen/|unsupported/Eigen/)"
)
INCLUDE = re.compile(r"""^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)""")
SOURCES = {".h", ".cpp", ".cu", ".cuh"}


def offences_in_line(folder, source, line):
    """Yields what is wrong with one line of the file `source` of `folder`."""
    match = INCLUDE.match(line)
    if not match:
        return
    quoted, angled = match.groups()
    path = quoted or angled
    if quoted:
        target = quoted.split("/")[0]
        if ".." in quoted or (source.parent / quoted).exists():
            yield f'"{quoted}" is not written from the repository\'s root'
        elif target not in MAY_INCLUDE[folder] and quoted not in GENERATED:
            allowed = ", ".join(sorted(MAY_INCLUDE[folder]))
            yield f'{folder} may not include "{quoted}" (only: {allowed})'
    if source.suffix == ".h" and HIDDEN_LIBRARIES.match(path):
        yield f"a header may not include <{path}>: keep it in a source file"


def offences(root):
    """All offences below `root`, as lines of text in the order of their files."""
    found = []
    for folder in MAY_INCLUDE:
        for path in sorted(p for p in (root / folder).rglob("*") if p.suffix in SOURCES):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                for text in offences_in_line(folder, path, line):
                    found.append(f"{path.relative_to(root)}:{number}: {text}")
    return found


def main():
    if len(sys.argv) > 2 or "--help" in sys.argv:
        print(__doc__.strip())
        sys.exit(0 if "--help" in sys.argv else 2)
    root = Path(sys.argv[1]) if len(sys.argv) == 2 else Path(__file__).resolve().parent.parent
    found = offences(root)
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
