"""The order of the training rows, for whatever must take the same batches as our programs."""


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return x ^ (x >> 31)


def permuted_row(seed, epoch, position, rows):
    """The order that data/row_permutation.h describes, written a second time."""
    bits = 1
    while 4**bits < rows:
        bits += 1
    mask, key, value = 2**bits - 1, mix(mix(seed) ^ epoch), position
    while True:
        left, right = value >> bits, value & mask
        for turn in range(8):
            left, right = right, left ^ (mix((key + (turn << 56) + right) & (2**64 - 1)) & mask)
        value = left << bits | right
        if value < rows:
            return value
