#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Time decode attention of PyTorch and FlashInfer over fp16 and fp8 on this GPU.

Prints lines "NAME TYPE SHARING SHAPE BATCH CONTEXT US" for gpu_bench --baselines: of the type
fp16 or fp8, of sequences of their own (private) or with one prefix for all but 128 tokens
(prefix), which FlashInfer attends to once for all. Exits with 3 if there is neither a GPU nor
PyTorch. Each timed call takes the next of several layers, whose bytes together are four times
the L2 cache. What is not installed, or has another interface, is said on stderr and left out.
"""
import sys
import time

SHAPES = {
    "llama-3.1-8b": (32, 8, 128),
    "llama-2-7b": (32, 32, 128),
    "llama-3.1-70b-tp8": (8, 1, 128),
}
BATCHES = (8, 64, 16, 1, 256)
CONTEXTS = (32768, 8192, 131072)
SECONDS = 80.0
SAMPLES = 15
PAGE = 64
OWN = 2                 # pages of a sequence that are not shared


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


class Case:
    """One step: queries [batch, heads, d] and layers of pages [page, kv head, token, d]."""

    def __init__(self, torch, shape, batch, context, sharing):
        self.torch = torch
        self.heads, self.kv, self.d = SHAPES[shape]
        self.batch, self.each = batch, context // PAGE
        self.shared = self.each - OWN if sharing == "prefix" else 0
        self.pages = self.shared + batch * (self.each - self.shared)
        self.q = torch.randn(batch, self.heads, self.d, dtype=torch.float16, device="cuda")

    def layers(self, dtype):
        """As many as are four times the L2, as pairs of K and V; none if memory is short."""
        torch = self.torch
        page = (self.pages, self.kv, PAGE, self.d)
        size = 2 * self.pages * self.kv * PAGE * self.d * torch.empty(0, dtype=dtype).element_size()
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        ring = min(max(2, -(-4 * l2 // size)), 64)
        # numbers are made as halves, a page's at a time in fp8
        if ring * size + size > torch.cuda.mem_get_info()[0] * 0.8:
            return []
        layers = []
        for _ in range(ring):
            pair = tuple(torch.empty(page, dtype=dtype, device="cuda") for _ in range(2))
            for x in pair:
                if dtype == torch.float16:
                    x.normal_()
                    continue
                for i in range(0, self.pages, 256):
                    part = x[i:i + 256]
                    part.copy_(torch.randn(part.shape, dtype=torch.float16, device="cuda"))
            layers.append(pair)
        return layers

    def numbers(self, *values):
        """A tensor of indices."""
        return self.torch.tensor(values, dtype=self.torch.int32, device="cuda")

    def arange(self, first, last, step=1):
        """The same of a range."""
        return self.torch.arange(first, last, step, dtype=self.torch.int32, device="cuda")

    def own(self):
        """Where the pages of each sequence begin, which they are, and tokens of the last."""
        each = self.each - self.shared
        return (self.arange(0, self.batch * each + 1, each),
                self.arange(self.shared, self.pages), self.numbers(*[PAGE] * self.batch))

    def space(self):
        """FlashInfer's workspace."""
        return self.torch.empty(256 << 20, dtype=self.torch.uint8, device="cuda")


def sdpa_calls(case, backend, layers):
    """Calls of PyTorch's attention with one of its backends."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    which = getattr(SDPBackend, backend)
    q = case.q[:, :, None]
    # the same bytes in another order: which token is where does not matter to the time
    shape = (case.batch, case.kv, case.each * PAGE, case.d)

    def call(k, v):
        with sdpa_kernel(which):
            case.torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    return [lambda kv=tuple(x.reshape(shape) for x in layer): call(*kv) for layer in layers]


def decode_calls(case, layers, tensor_cores):
    """Calls of FlashInfer's batched decode: each sequence reads all of its pages."""
    import flashinfer

    first, index, last = case.own()
    if case.shared:
        rows = index.reshape(case.batch, -1)
        prefix = case.arange(0, case.shared).expand(case.batch, -1)
        index = case.torch.cat([prefix, rows], 1).reshape(-1).contiguous()
        first = case.arange(0, case.batch * case.each + 1, case.each)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(case.space(), "HND",
                                                            use_tensor_cores=tensor_cores)
    wrapper.plan(first, index, last, case.heads, case.kv, case.d, PAGE,
                 q_data_type=case.q.dtype, kv_data_type=layers[0][0].dtype)
    return [lambda kv=kv: wrapper.run(case.q, kv) for kv in layers]


def cascade_calls(case, layers):
    """Calls of FlashInfer's cascade of two levels: what is shared, and what is not."""
    import flashinfer

    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(2, case.space(), "HND")
    first, index, last = case.own()
    wrapper.plan([case.numbers(0, case.batch), case.arange(0, case.batch + 1)],
                 [case.numbers(0, case.shared), first],
                 [case.arange(0, case.shared), index],
                 [case.numbers(PAGE), last],
                 case.heads, case.kv, case.d, PAGE, q_data_type=case.q.dtype,
                 kv_data_type=layers[0][0].dtype)
    return [lambda kv=kv: wrapper.run(case.q, kv) for kv in layers]


def makers_of(case, kind):
    """The kernels that can compute a case."""
    makers = {
        "flashinfer": lambda c, x: decode_calls(c, x, False),
        "flashinfer-mma": lambda c, x: decode_calls(c, x, True),
    }
    if case.shared:
        makers["flashinfer-cascade"] = cascade_calls
    elif kind == "fp16":
        makers["sdpa-flash"] = lambda c, x: sdpa_calls(c, "FLASH_ATTENTION", x)
        makers["sdpa-cudnn"] = lambda c, x: sdpa_calls(c, "CUDNN_ATTENTION", x)
    return makers


def measure(torch, shape, batch, context, sharing, kind):
    """Print the time of every kernel there is for one case."""
    # what the case before has left is free to the eye of mem_get_info() only then
    torch.cuda.empty_cache()
    case = Case(torch, shape, batch, context, sharing)
    what = f"{kind} {sharing} {shape} {batch} {context}"
    try:
        layers = case.layers(torch.float16 if kind == "fp16" else torch.float8_e4m3fn)
    except (AttributeError, RuntimeError) as problem:   # no such type, or no such memory
        print(f"{what}: {problem}", file=sys.stderr)
        return
    if not layers:
        return
    for name, make in makers_of(case, kind).items():
        try:
            us = median_us(torch, make(case, layers))
        except Exception as problem:  # a kernel that is not here, or not for this shape
            print(f"{name} {what}: {problem}", file=sys.stderr)
            continue
        print(name, what, f"{us:.3f}", flush=True)


def cases():
    """All there are, in the order of gpu_bench's rows, but for shapes in turn."""
    for context in CONTEXTS:
        for batch in BATCHES:
            for sharing in ("private", "prefix"):
                # 16 sequences are measured with one prefix of 32768 tokens alone
                if (batch == 16 and (sharing, context) != ("prefix", 32768)) or \
                        (batch == 1 and sharing == "prefix"):
                    continue
                for kind in ("fp16", "fp8"):
                    for shape in SHAPES:
                        yield shape, batch, context, sharing, kind


def main():
    """Measure until the time is up."""
    try:
        import torch
    except ImportError:
        return 3
    if not torch.cuda.is_available():
        return 3
    end = time.monotonic() + SECONDS
    for case in cases():
        if time.monotonic() < end:
            measure(torch, *case)
    return 0


if __name__ == "__main__":
    sys.exit(main())
