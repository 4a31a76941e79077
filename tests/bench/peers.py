#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Decode attention of others on this machine, in the shapes of bench_attention.

Prints a JSON object per line: PyTorch's products and softmax over keys and
values in float32 and bfloat16, ggml's flash attention over halves and its 8-bit and
4-bit types, if GGML_DIR names an installed one, and FAISS's scan of
product-quantised keys, which is the part of attention that gives scores. One
thread, 8 kv heads, 4 query heads each, 128 channels; tensors take turns, so that
each was last used 256 MiB ago. What is missing is named on stderr and left out.

    peers.py [torch] [ggml] [faiss]    only these
"""

import importlib
import json
import statistics
import sys
import time
from functools import partial
from types import ModuleType
from typing import Any, Callable, Optional

import ggml_peer

N_KV = 8
GQA = 4
DIM = 128
CONTEXTS = (1024, 4096, 16384, 65536)
SAMPLES = 9
ROTATE_BYTES = 256 << 20


def load(name: str) -> Optional[ModuleType]:
    """A module, or None and a line on stderr."""
    try:
        return importlib.import_module(name)
    except ImportError as err:
        print(f"peers: {name}: {err}; left out", file=sys.stderr)
        return None


def median_ns(call: Callable[[int], Any]) -> float:
    """Median CPU time of call(i), i counting up; the first call is not counted."""
    times = []
    for i in range(SAMPLES + 1):
        start = time.thread_time_ns()
        call(i)
        times.append(time.thread_time_ns() - start)
    return statistics.median(times[1:])


def put(peer: str, what: str, context: int, ns: float, **more: Any) -> None:
    """One figure, ns per token and kv head."""
    print(json.dumps({"bench": "peer", "peer": peer, "what": what, "context": context,
                      "threads": 1, "head_dim": DIM, "gqa": GQA,
                      "ns_per_token_head": round(ns / context / N_KV, 2), **more}), flush=True)


def run_torch(torch: Any) -> None:
    """All of attention: q k, softmax, p v; the rows of a group share their keys."""
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.bfloat16):
        size = torch.finfo(dtype).bits // 8
        for context in CONTEXTS:
            n = max(1, ROTATE_BYTES // (2 * N_KV * context * DIM * size))
            q = torch.randn(N_KV, GQA, DIM).to(dtype)
            k = [torch.randn(N_KV, context, DIM).to(dtype) for _ in range(n)]
            v = [torch.randn(N_KV, context, DIM).to(dtype) for _ in range(n)]

            def call(i: int) -> Any:
                at = i % len(k)
                s = torch.bmm(q * DIM ** -0.5, k[at].transpose(1, 2))
                return torch.bmm(torch.softmax(s, -1), v[at])

            with torch.no_grad():
                name = str(dtype).rsplit(".", maxsplit=1)[-1]
                put(f"torch {torch.__version__}", f"attention, {name}", context,
                    median_ns(call))


def run_faiss(faiss: Any, numpy: Any) -> None:
    """Scores of keys coded at 1 bit per channel; no softmax, no values."""
    faiss.omp_set_num_threads(1)
    rng = numpy.random.default_rng(1)
    kinds = {"keys, PQ 16x8": lambda: faiss.IndexPQ(DIM, 16, 8, faiss.METRIC_INNER_PRODUCT),
             "keys, PQ fast scan 32x4":
             lambda: faiss.IndexPQFastScan(DIM, 32, 4, faiss.METRIC_INNER_PRODUCT)}
    for what, make in kinds.items():
        index = make()
        index.train(rng.standard_normal((10000, DIM), dtype=numpy.float32))
        for context in CONTEXTS:
            index.reset()
            index.add(rng.standard_normal((context, DIM), dtype=numpy.float32))
            q = rng.standard_normal((GQA, DIM), dtype=numpy.float32)
            ns = median_ns(lambda i, ix=index, x=q: [ix.search(x, 1) for _ in range(N_KV)])
            put(f"faiss {faiss.__version__}", what, context, ns)


def run_ggml(lib: Any, numpy: Any) -> None:
    """All of attention in one call, over K and V of each type; errors by the type's coding."""
    def measure(context: int, what: str, call: Callable[[int], Any], error: float) -> None:
        put("ggml", what, context, median_ns(call), rel_err=float(f"{error:.1e}"))

    for context in CONTEXTS:
        ggml_peer.run(lib, numpy, (N_KV, GQA, DIM), context, ROTATE_BYTES,
                      partial(measure, context))


def main() -> None:
    """Every peer that is there, or those named."""
    wanted = sys.argv[1:] or ["torch", "ggml", "faiss"]
    numpy = load("numpy")
    if "torch" in wanted and (torch := load("torch")):
        run_torch(torch)
    if "ggml" in wanted and (ggml := ggml_peer.load()) and numpy:
        run_ggml(ggml, numpy)
    if "faiss" in wanted and (faiss := load("faiss")) and numpy:
        run_faiss(faiss, numpy)


if __name__ == "__main__":
    main()
