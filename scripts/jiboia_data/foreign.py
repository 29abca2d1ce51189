"""HDF5 shards that another program wrote: what readers of data/FORMAT.md demand of them."""

import h5py
import numpy as np

from jiboia_data.errors import DataError
from jiboia_data.shards import FORMAT_VERSION, check_tokens

MAX_CHUNK_BYTES = 64 << 20
MAX_COMPRESSION = 256  # nothing is deflated to a smaller part
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_shard(path, vocab_size):
    """The row length of a shard (None: a stream), and whether it has document starts."""
    check_name(path)
    if not path.is_file():
        raise DataError(f"{path}: not a regular file")
    try:
        with h5py.File(path, "r") as file:
            check_links(path, file)
            tokens, starts = file["tokens"], file.get("document_starts")
            check_dataset(path, tokens, (1, 2))
            if 0 in tokens.shape[1:]:
                raise DataError(f"{path}: `tokens` has rows of 0 tokens")
            check_tokens(path, tokens, vocab_size)
            if starts is not None:
                check_dataset(path, starts, (1,))
                check_starts(path, starts, tokens.size)
            check_attributes(path, file, vocab_size)
            row_length = tokens.shape[1] if tokens.ndim == 2 else None
            return row_length, starts is not None
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system, not of what is in the file
        raise DataError(f"{path}: not readable as HDF5: {error}") from error


def check_name(path):
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path.parent}: a manifest cannot name {path.name!r}: it is not UTF-8"
        ) from error
    if "\\" in path.name:
        raise DataError(f"{path.parent}: a manifest cannot name {path.name!r}: it has a backslash")


def check_links(path, file):
    for name in file:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = "a soft" if isinstance(link, h5py.SoftLink) else "an external"
            raise DataError(f"{path}: `{name}` is {kind} link, expected the dataset itself")
        if name not in ("tokens", "document_starts"):
            break
    else:
        if "tokens" in file:
            return
    raise DataError(
        f"{path}: expected a dataset `tokens`, and nothing else but `document_starts`; there are: "
        f"{', '.join(file) or 'none'}"
    )


def check_dataset(path, dataset, ranks):
    """Integers of one of these ranks, held in this file, of an extent that it can hold."""
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: a group, expected datasets `tokens` and `document_starts`")
    what = f"{path}: `{dataset.name[1:]}`"
    if dataset.dtype.kind not in "iu":
        raise DataError(f"{what} is {dataset.dtype}, expected integers")
    if dataset.ndim not in ranks:
        raise DataError(f"{what} has rank {dataset.ndim}, expected {' or '.join(map(str, ranks))}")
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{what} has its data in other files, expected it inside this one")
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(i)[0] for i in range(creation.get_nfilters())]
    if not set(filters) <= set(FILTERS):
        raise DataError(
            f"{what} uses filters {filters}, expected only deflate (1), shuffle (2) and "
            "fletcher32 (3)"
        )
    if dataset.chunks:
        chunk_bytes = int(np.prod(dataset.chunks, dtype=object)) * dataset.dtype.itemsize
        if chunk_bytes > MAX_CHUNK_BYTES:
            raise DataError(
                f"{what} has chunks of {chunk_bytes} bytes, expected at most {MAX_CHUNK_BYTES}"
            )
        if dataset.chunks[1:] > dataset.shape[1:]:
            raise DataError(
                f"{what} has chunks {dataset.chunks[1]} wide, its rows have {dataset.shape[1]} "
                "tokens"
            )
    wanted = int(np.prod(dataset.shape, dtype=object)) * dataset.dtype.itemsize
    compression = MAX_COMPRESSION if h5py.h5z.FILTER_DEFLATE in filters else 1
    if wanted // compression > (size := path.stat().st_size):
        raise DataError(f"{what} claims {wanted} bytes, more than a file of {size} can hold")


def check_starts(path, dataset, tokens):
    """That they rise, within the tokens."""
    if dataset.size > tokens:
        raise DataError(f"{path}: lists {dataset.size} document starts for {tokens} tokens")
    starts = dataset[:]
    wrong = (starts < 0) | (starts >= tokens)
    wrong[1:] |= starts[1:] <= starts[:-1]
    if wrong.any():
        first = np.flatnonzero(wrong)[0]
        previous = starts[first - 1] if first else -1
        raise DataError(
            f"{path}: document_starts[{first}] is {starts[first]}, expected more than {previous} "
            f"and less than {tokens}"
        )


def check_attributes(path, file, vocab_size):
    """That none contradicts the manifest that is to be written, which knows no more than these."""
    wanted = {
        "format_version": FORMAT_VERSION,
        "vocab_size": vocab_size,
        "tokens": file["tokens"].size,
        "documents": file["document_starts"].size if "document_starts" in file else None,
        **dict.fromkeys(("source_bytes", *TOKEN_IDS)),
    }
    for name in wanted.keys() & file.attrs.keys():
        found = file.attrs[name]
        if np.size(found) != 1 or wanted[name] != np.ravel(found)[0]:
            raise DataError(
                f"{path}: attribute `{name}` is {found}, this manifest would say "
                f"{'nothing' if wanted[name] is None else wanted[name]}; is this a shard that "
                "prepare_data.py wrote? Then start the command that wrote it again"
            )
