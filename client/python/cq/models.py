# SPDX-License-Identifier: MIT
"""A folder of a language model: its attention's shape, and a forward pass.

What load() returns has .geometry, .rope, .vocab, embed(ids) and
forward(x, tap, rows): see lm.Llama.
"""
import glob
import hashlib
import json
import os

import numpy as np
import torch

from . import lm


class ModelError(ValueError):
    """A model folder that cannot be used; the text says why."""


def load(folder, transformers=False):
    """The model in a folder; transformers: use that package even if not needed."""
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as f:
            config = json.load(f)
    except (OSError, ValueError, RecursionError) as e:
        raise ModelError(f"{path}: {e}") from e
    if not isinstance(config, dict):
        raise ModelError(f"{path}: not an object")
    torch.set_num_threads(int(os.environ.get("CQ_THREADS", "1")))
    if lm.Llama.knows(config) and not transformers and \
            os.path.exists(os.path.join(folder, "model.safetensors")):
        return lm.Llama(folder)
    from . import hf
    return hf.Model(folder)


def fingerprint(folder):
    """SHA-256 of the weight file; of all of them in the order of their names."""
    files = sorted(glob.glob(os.path.join(folder, "*.safetensors"))) or \
        sorted(glob.glob(os.path.join(folder, "pytorch_model*.bin")))
    if os.path.exists(os.path.join(folder, "model.safetensors")):
        files = [os.path.join(folder, "model.safetensors")]
    if not files:
        raise ModelError(f"{folder}: no weights (*.safetensors, pytorch_model*.bin)")
    digest = hashlib.sha256()
    for name in files:
        with open(name, "rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _array(path):
    try:
        found = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as e:      # numpy tries several formats, each with errors of its own
        raise ModelError(f"{path}: {e}") from e
    if not isinstance(found, np.ndarray):
        raise ModelError(f"{path} is not an array of numpy")
    return found


def read_ids(path, vocab):
    """Token ids: .u16 and .u32 are little-endian words, .npy is numpy's."""
    kinds = {".u16": "<u2", ".u32": "<u4"}
    ext = os.path.splitext(path)[1]
    if ext == ".npy":
        ids = _array(path).ravel()
    elif ext in kinds:
        ids = np.fromfile(path, kinds[ext])
    else:
        raise ModelError(f"{path}: token ids are .u16, .u32 or .npy")
    if ids.dtype.kind not in "iu" or not len(ids):
        raise ModelError(f"{path}: no token ids")
    if int(ids.max()) >= vocab or int(ids.min()) < 0:
        bad = int(ids.max()) if int(ids.max()) >= vocab else int(ids.min())
        raise ModelError(f"{path}: id {bad}, but the model has {vocab} words")
    return ids.astype(np.int64)


def check_length(model, length):
    """Refuse sequences longer than a model has positions."""
    if length > model.geometry["max_position"]:
        raise ModelError(f"sequences of {length} tokens: the model has "
                         f"{model.geometry['max_position']} positions")


def sequences(ids, count, length, skip=0):
    """[count][length] of consecutive tokens, from token skip on."""
    have = max(0, len(ids) - skip) // length
    if have < count:
        raise ModelError(f"{count} sequences of {length} tokens behind {skip} are "
                         f"{skip + count * length} tokens; the text has {len(ids)}")
    return torch.from_numpy(ids[skip:skip + count * length].reshape(count, length))


def check_fingerprint(path, found, fingerprint, folder):
    """Refuse a file that was made from another model's weights."""
    if found != fingerprint:
        raise ModelError(f"{path} is of another model than {folder}: its fingerprint differs")
