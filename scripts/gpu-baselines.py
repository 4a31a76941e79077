#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Time fp16 decode attention of PyTorch and FlashInfer on this GPU.

Prints lines "NAME SHAPE BATCH CONTEXT US" for gpu_bench --baselines. Exits with 3 if
there is neither a GPU nor PyTorch. Each timed call takes the next of several layers,
whose bytes together are four times the L2 cache.
"""
import sys
import time

SHAPES = {
    "llama-3.1-8b": (32, 8, 128),
    "llama-2-7b": (32, 32, 128),
    "llama-3.1-70b-tp8": (8, 1, 128),
}
BATCHES = (8, 64, 1, 256)
CONTEXTS = (32768, 8192, 131072)
SECONDS = 80.0
SAMPLES = 15


def median_us(torch, calls):
    """Median time of one of the calls, in microseconds, after a first round."""
    times = []
    for call in calls:
        call()
    torch.cuda.synchronize()
    for i in range(SAMPLES):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        calls[i % len(calls)]()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times)[SAMPLES // 2]


def sdpa_calls(torch, backend, q, layers):
    """Calls of PyTorch's attention with one of its backends."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    which = getattr(SDPBackend, backend)

    def call(k, v):
        with sdpa_kernel(which):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    return [lambda kv=kv: call(*kv) for kv in layers]


def flashinfer_calls(torch, q, layers):
    """Calls of FlashInfer's batched decode over pages of 64 tokens."""
    import flashinfer

    batch, heads, _, d = q.shape
    kv, tokens = layers[0][0].shape[1:3]
    pages = tokens // 64
    space = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(space, "HND")
    first = torch.arange(0, batch + 1, dtype=torch.int32, device="cuda") * pages
    index = torch.arange(batch * pages, dtype=torch.int32, device="cuda")
    last = torch.full((batch,), 64, dtype=torch.int32, device="cuda")
    wrapper.plan(first, index, last, heads, kv, d, 64, q_data_type=torch.float16)
    # the same bytes as pages: which token is where does not matter to the time
    paged = [tuple(x.reshape(batch * pages, kv, 64, d) for x in layer) for layer in layers]
    rows = q[:, :, 0].contiguous()
    return [lambda kv=kv: wrapper.run(rows, kv) for kv in paged]


def measure(torch, name, batch, context):
    """Print the time of every kernel there is for one case."""
    heads, kv, d = SHAPES[name]
    # what the case before has left is free to the eye of mem_get_info() only then
    torch.cuda.empty_cache()
    layer = 2 * batch * context * kv * d * 2
    free = torch.cuda.mem_get_info()[0]
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    ring = min(max(2, -(-4 * l2 // layer)), 64)
    if ring * layer > free * 0.8:
        return
    q = torch.randn(batch, heads, 1, d, dtype=torch.float16, device="cuda")
    layers = [tuple(torch.randn(batch, kv, context, d, dtype=torch.float16, device="cuda")
                    for _ in range(2)) for _ in range(ring)]
    makers = {
        "sdpa-flash": lambda: sdpa_calls(torch, "FLASH_ATTENTION", q, layers),
        "sdpa-cudnn": lambda: sdpa_calls(torch, "CUDNN_ATTENTION", q, layers),
        "flashinfer": lambda: flashinfer_calls(torch, q, layers),
    }
    for kernel, make in makers.items():
        try:
            us = median_us(torch, make())
        except Exception as problem:  # a kernel that is not here, or not for this shape
            print(f"{kernel} {name} {batch}x{context}: {problem}", file=sys.stderr)
            continue
        print(kernel, name, batch, context, f"{us:.3f}", flush=True)


def main():
    """Measure until the time is up."""
    try:
        import torch
    except ImportError:
        return 3
    if not torch.cuda.is_available():
        return 3
    end = time.monotonic() + SECONDS
    for name in SHAPES:
        for batch in BATCHES:
            for context in CONTEXTS:
                if time.monotonic() < end:
                    measure(torch, name, batch, context)
    return 0


if __name__ == "__main__":
    sys.exit(main())
