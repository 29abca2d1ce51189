"""Text of distribution packages, cleaned and split for training.

The packages of a packages.json are fetched with `apt-get download` and unpacked, not installed: their
documentation is read even where the system drops it. Their text is cleaned (text_cleaning.py) and a
share of the documents, chosen by a hash of their text, is held out. The same packages give the same
files. Written, the last one last:

  train.jsonl, validation.jsonl   one document a line: {"source": ..., "text": ...}
  corpus.json                     packages with versions, hashes and licences; counts

A version whose SHA-256 is on record must match it; another version only warns.
Standard library only.
"""

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from jiboia_data.errors import DataError

INSTALLER = Path(__file__).resolve().parents[1] / "install_dependencies.sh"


def warn(text):
    print(f"warning: {text}", file=sys.stderr)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def deb_field(deb, field):
    command = ["dpkg-deb", "--field", deb, field]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def download(name, folder):
    """Fetches package `name` into `folder`. Returns its path, or None when apt has none."""
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        command = ["apt-get", "download", "-q", name]
        result = subprocess.run(command, cwd=partial, capture_output=True, text=True, check=False)
        debs = list(Path(partial).glob("*.deb"))
        if result.returncode or not debs:
            return None
        return debs[0].rename(folder / debs[0].name)


def fetch(packages, folder):
    """The .deb files of `packages` by name, from `folder` or else from the distribution."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for package in packages:
        found[package["name"]] = next(iter(sorted(folder.glob(f"{package['name']}_*.deb"))), None)

    def fetch_missing():
        for name in [name for name, deb in found.items() if deb is None]:
            found[name] = download(name, folder)

    fetch_missing()
    if None in found.values():
        # Package lists that are absent or older than the mirror are the usual reason.
        subprocess.run([INSTALLER, "lists"], check=False)
        fetch_missing()
    return found


def check_hash(package, deb):
    """Facts of a package file. Raises DataError when it is not what its version should be."""
    version, digest = deb_field(deb, "Version"), sha256(deb)
    known = package["sha256"].get(version)  # Debian and Ubuntu build one version each for itself
    if known is None:
        warn(f"{package['name']} {version}: no hash on record; the text may differ a little")
    elif digest not in known:
        deb.unlink()
        raise DataError(
            f"{deb.name}: SHA-256 is {digest}, expected {' or '.join(known)}; "
            "removed it, start again to fetch it"
        )
    return {
        "name": package["name"],
        "version": version,
        "sha256": digest,
        "contents": package["contents"],
        "licence": package["licence"],
    }


def read_file(path, encoding):
    data = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        data = gzip.decompress(data)
    return data.decode(encoding, errors="replace")


def documents(package, root, cleaner, readers):
    """Yields (source, text) of the documents of a package that was unpacked to `root`."""
    read = readers[package["format"]]
    for path in sorted(p for p in root.glob(package["files"]) if p.is_file()):
        parts = read(read_file(path, package["encoding"]))
        for number, paragraphs in enumerate(parts):
            text = cleaner.clean(paragraphs)
            if text:
                where = f"{package['name']}/{path.relative_to(root)}"
                yield (f"{where}#{number}" if len(parts) > 1 else where), text


def is_held_out(text, share):
    """By the text alone, so that it stays where it is when other documents come or go."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def gather(packages, debs, output, cleaner, readers, held_out):
    """Writes both splits. Returns the contents of corpus.json."""
    output.mkdir(parents=True, exist_ok=True)
    used = []
    files = {name: output / f"{name}.jsonl" for name in ("train", "validation")}
    with files["train"].open("w", encoding="utf-8") as train, files["validation"].open(
        "w", encoding="utf-8"
    ) as validation:
        splits = {"train": train, "validation": validation}
        counts = {name: {"documents": 0, "bytes": 0} for name in splits}
        for package in packages:
            deb = debs[package["name"]]
            if deb is None:
                warn(f"{package['name']}: not offered by this distribution, left out")
                continue
            facts = check_hash(package, deb) | {"documents": 0, "bytes": 0}
            used.append(facts)
            with tempfile.TemporaryDirectory(dir=deb.parent) as root:
                subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
                for source, text in documents(package, Path(root), cleaner, readers):
                    name = "validation" if is_held_out(text, held_out) else "train"
                    line = json.dumps({"source": source, "text": text}, ensure_ascii=False)
                    splits[name].write(line + "\n")
                    for count in (facts, counts[name]):
                        count["documents"] += 1
                        count["bytes"] += len(text.encode("utf-8"))
            if not facts["bytes"]:
                warn(f"{package['name']}: no text in {package['files']}")
            print(f"  {facts['name']:24} {facts['version']:24} {facts['bytes'] / 1e6:6.2f} MB")
    return {"packages": used, "splits": counts}


def finish(corpus, output, minimum_bytes):
    """Writes corpus.json. Raises DataError when there is less training text than `minimum_bytes`."""
    total = corpus["splits"]["train"]["bytes"]
    if total < minimum_bytes:
        raise DataError(
            f"only {total} bytes of training text were found, {minimum_bytes} are needed: is the "
            "package mirror reachable, and does apt know its packages (apt-get update)?"
        )
    partial = output / "corpus.json.part"
    partial.write_text(json.dumps(corpus, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(output / "corpus.json")
    for name, split in corpus["splits"].items():
        print(f"  {name}: {split['documents']} documents, {split['bytes']} bytes")


def gather_and_split(description, packages_file, minimum_bytes, cleaner, readers, held_out):
    """The main() of a program: gathers the packages that a file lists."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, required=True, help="folder for .deb files, kept")
    parser.add_argument("--output", type=Path, required=True, help="folder for the text")
    parser.add_argument(
        "--minimum-bytes",
        type=int,
        default=minimum_bytes,
        help="fail with less training text than this (default: %(default)s)",
    )
    options = parser.parse_args()
    packages = json.loads(packages_file.read_text(encoding="utf-8"))
    debs = fetch(packages, options.packages)
    try:
        corpus = gather(packages, debs, options.output, cleaner, readers, held_out)
        finish(corpus, options.output, options.minimum_bytes)
    except DataError as error:
        parser.exit(error.exit_code, f"{parser.prog}: {error}\n")


def texts(path):
    """The documents of one of the files above."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]
