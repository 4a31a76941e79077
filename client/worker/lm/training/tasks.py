# SPDX-License-Identifier: MIT
"""Tasks whose answers stand in the context: key-value recall and copying.

Every function is deterministic in its seed. Training and measuring share
these, with different seeds and different text.
"""
import os

import numpy as np

FIRST_WORD = 256          # ids below are bytes; keys and values are words
PAIR = ord(";")           # "; key value": a pair to remember
ASK = ord("?")            # "? key value": the question and its answer

# name -> (tokens for each pair, questions, words of a value); what README calls by these names
PRESETS = {"single": (64, 1, 1), "multikey": (24, 16, 4)}


def held_out():
    """The token ids of ../heldout.u16: text that no training run reads."""
    here = os.path.dirname(os.path.abspath(__file__))
    return np.fromfile(os.path.join(here, "..", "heldout.u16"), dtype="<u2")


def recall(seed, n_tokens, n_pairs, n_queries, n_words=1, text=None, vocab=4096):
    """Key-value pairs strewn into running text, questions at its end.

    The text is one excerpt of text (default: held_out()); after a random
    token of it comes each pair `; key value`. The last tokens are `? key value`
    for n_queries different keys. A key is one word, a value n_words; all words
    are different ids of FIRST_WORD and above, none of which the excerpt has.

    seed: an int or a list of ints. Returns (ids uint16[n_tokens],
    positions int[n_queries][n_words], answers [n_queries][n_words]): the logits at
    ids[positions] (a key asked for and its value but for the last word)
    are to predict answers. Raises ValueError when the numbers leave no room.
    """
    if not 1 <= n_queries <= n_pairs:
        raise ValueError(f"n_queries {n_queries}: want 1 to n_pairs {n_pairs}")
    each = 2 + n_words
    n_text = n_tokens - each * (n_pairs + n_queries)
    if n_text < 0:
        raise ValueError(f"n_tokens {n_tokens}: {n_pairs} pairs and "
                         f"{n_queries} queries need {n_tokens - n_text}")
    text = held_out() if text is None else text
    rng = np.random.default_rng(seed)
    start = rng.integers(len(text) - n_text)
    filler = text[start:start + n_text]
    free = np.setdiff1d(np.arange(FIRST_WORD, vocab), filler)
    if len(free) < (1 + n_words) * n_pairs:
        raise ValueError(f"n_pairs {n_pairs}: only {len(free)} words are free")
    words = rng.choice(free, (1 + n_words, n_pairs), replace=False)
    pairs = np.stack([np.full(n_pairs, PAIR), *words], 1)
    after = np.sort(rng.integers(0, n_text + 1, n_pairs))
    body = np.insert(filler.astype(np.int64), np.repeat(after, each), pairs.ravel())
    asked = pairs[rng.choice(n_pairs, n_queries, replace=False)]
    asked[:, 0] = ASK
    ids = np.concatenate([body, asked.ravel()]).astype(np.uint16)
    keys = n_tokens - each * n_queries + 1 + each * np.arange(n_queries)
    return ids, keys[:, None] + np.arange(n_words), asked[:, 2:]


def preset(name, seed, n_tokens, text=None):
    """recall() with the pairs, questions and words that PRESETS[name] says."""
    per_pair, n_queries, n_words = PRESETS[name]
    return recall(seed, n_tokens, n_tokens // per_pair, n_queries, n_words, text)


def repeated(seed, n_tokens, period, alphabet=3840, vocab=4096):
    """A random string of period ids over alphabet words, over and over.

    Returns (ids uint16[n_tokens], positions, answers), one of each for every token
    of every repetition but the first.
    """
    rng = np.random.default_rng(seed)
    words = rng.choice(np.arange(FIRST_WORD, vocab), alphabet, replace=False)
    ids = np.resize(words[rng.integers(0, alphabet, period)], n_tokens)
    positions = np.arange(period, n_tokens - 1)
    return ids.astype(np.uint16), positions, ids[positions + 1]
