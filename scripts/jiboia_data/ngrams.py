"""N-gram models of token streams, of any order, in arrays: memory and time grow with the tokens.

Interpolated Kneser-Ney smoothing (Kneser and Ney 1995; Chen and Goodman 1999, section 3), with one
discount an order or, "modified", three, from the counts of counts. Lower orders count in how many
contexts an n-gram was seen, not how often; the unigram is interpolated with the uniform distribution,
so that no token has probability zero. A stream is taken as it is: contexts reach across the
separators of its documents, as those of a language model that is trained on the stream do.
"""

import numpy as np


def one_discount(counts):
    """What is taken off counts of 0, 1, 2, and 3 or more: n1 / (n1 + 2 n2) off all but 0, of Ney,
    Essen and Kneser 1994, where n_k is how many counts equal k; one half where there are no ones."""
    n1, n2 = (np.count_nonzero(counts == k) for k in (1, 2))
    discount = n1 / (n1 + 2 * n2) if n1 else 0.5
    return np.array([0, discount, discount, discount])


def three_discounts(counts):
    """The same by Chen and Goodman's equation 26. Where too few n-grams were counted for it, half of
    a count of 1 and proportionally more."""
    n1, n2, n3, n4 = (np.count_nonzero(counts == k) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return np.array([0, 0.5, 1.0, 1.5])
    y = n1 / (n1 + 2 * n2)
    found = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.clip(found, 0, [0, 1, 2, 3])


def unigram(tokens, vocab_size):
    """P(token) of every token of the vocabulary, from its count plus one."""
    counts = np.bincount(tokens, minlength=vocab_size) + 1.0
    return counts / counts.sum()


class Level:
    """One order's share: P(token | context) = probability[n-gram] + backoff[context] x the order
    below, where an n-gram that was not seen has probability 0 and a context that was not seen
    backoff 1."""

    def __init__(self, counts, contexts, context_count, discounts):
        taken = discounts(counts)[np.minimum(counts, 3)]
        total = np.bincount(contexts, counts, context_count)
        followed = total > 0
        total[~followed] = 1
        self.backoff = np.bincount(contexts, taken, context_count) / total
        self.backoff[~followed] = 1.0
        self.probability = (counts - taken) / total[contexts]


class KneserNey:
    """The models of orders 1 to `order` (at least 1), which share their n-grams.

    The n-grams of an order are numbered by their sorted keys: the number of the first n - 1 tokens
    as an n-gram of the order below, times vocab_size, plus the last token.
    """

    def __init__(self, tokens, vocab_size, order, discounts=three_discounts):
        self.vocab_size = vocab_size
        self.keys = [np.arange(vocab_size)]
        self.highest = []  # from how often an n-gram was seen
        self.lower = []  # from how many tokens it was seen after
        tokens = tokens.astype(np.int64)
        numbers = tokens  # of the n-gram that begins at each position
        counts = np.bincount(tokens, minlength=vocab_size)
        contexts, context_count = np.zeros(vocab_size, np.int64), 1
        for n in range(1, order + 1):
            self.highest.append(Level(counts, contexts, context_count, discounts))
            if n == order:
                break
            keys, first, longer, longer_counts = np.unique(
                numbers[:-1] * vocab_size + tokens[n:],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            after = np.bincount(numbers[first + 1], minlength=len(self.keys[-1]))
            self.lower.append(Level(after, contexts, context_count, discounts))
            context_count = len(self.keys[-1])
            contexts = keys // vocab_size
            self.keys.append(keys)
            numbers, counts = longer, longer_counts

    def probabilities(self, tokens, order):
        """P(token | the order - 1 tokens before it) of every token of a stream, float64; the first
        ones have shorter contexts."""
        tokens = tokens.astype(np.int64)
        below = np.full(len(tokens), 1 / self.vocab_size)
        context = np.zeros(len(tokens), np.int64)  # number of the tokens before, -1 for unseen
        for n in range(1, order + 1):
            keys = self.keys[n - 1]
            level = self.highest[n - 1] if n == order else self.lower[n - 1]
            wanted = context * self.vocab_size + tokens
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            seen = (context >= 0) & (keys[place] == wanted)
            below = np.where(context >= 0, level.backoff[context], 1.0) * below
            below += np.where(seen, level.probability[place], 0.0)
            context = np.append(-1, np.where(seen, place, -1)[:-1])
        return below
