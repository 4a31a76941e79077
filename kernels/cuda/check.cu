// SPDX-License-Identifier: MIT
/*
 * Checksums of payloads: XXH3-64 with the default secret and seed 0 of every
 * 4 KiB (XXH3, Yann Collet; the specification is doc/xxhash_spec.md of
 * xxHash 0.8). Eight lanes share a chunk: each has one of the eight
 * accumulators. The host makes XXH3-128 of the results.
 */
#include "kernels/cuda/load.cuh"

#define P32_1 0x9E3779B1u
#define P32_2 0x85EBCA77u
#define P32_3 0xC2B2AE3Du
#define P64_1 0x9E3779B185EBCA87ull
#define P64_2 0xC2B2AE3D27D4EB4Full
#define P64_3 0x165667B19E3779F9ull
#define P64_4 0x85EBCA77C2B2AE63ull
#define P64_5 0x27D4EB2F165667C5ull
#define PMX_1 0x165667919E3779F9ull
#define PMX_2 0x9FB21C651E98DF25ull

#define STRIPE 64
#define SECRET 192
#define STRIPES 16		/* (SECRET - STRIPE) / 8: then the accumulators are mixed */

#ifdef __CUDACC__
__constant__
#endif
static const uint8_t secret[SECRET] = {
	0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21,
	0xad, 0x1c, 0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4,
	0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a,
	0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e,
	0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3,
	0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97,
	0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa,
	0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
	0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78,
	0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff,
	0xfa, 0x13, 0x63, 0xeb, 0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16,
	0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc,
	0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16,
	0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

CQ_DEVICE uint32_t get32(const uint8_t *p)
{
	return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

CQ_DEVICE uint64_t get64(const uint8_t *p)
{
	return get32(p) | (uint64_t)get32(p + 4) << 32;
}

/* Both halves of the product, folded. */
CQ_DEVICE uint64_t fold(uint64_t a, uint64_t b)
{
	return a * b ^ __umul64hi(a, b);
}

CQ_DEVICE uint64_t avalanche(uint64_t h)
{
	h = (h ^ h >> 37) * PMX_1;
	return h ^ h >> 32;
}

CQ_DEVICE uint64_t avalanche64(uint64_t h)
{
	h = (h ^ h >> 33) * P64_2;
	h = (h ^ h >> 29) * P64_3;
	return h ^ h >> 32;
}

CQ_DEVICE uint64_t rotate(uint64_t x, int by)
{
	return x << by | x >> (64 - by);
}

CQ_DEVICE uint64_t swap32(uint32_t x)
{
	return __byte_perm(x, 0, 0x0123);
}

CQ_DEVICE uint64_t mix16(const uint8_t *p, const uint8_t *key)
{
	return fold(get64(p) ^ get64(key), get64(p + 8) ^ get64(key + 8));
}

CQ_DEVICE uint64_t hash_to_16(const uint8_t *p, uint32_t n)
{
	uint64_t lo, hi, h;

	if (n > 8) {
		lo = get64(p) ^ get64(secret + 24) ^ get64(secret + 32);
		hi = get64(p + n - 8) ^ get64(secret + 40) ^ get64(secret + 48);
		h = (swap32((uint32_t)lo) << 32 | swap32((uint32_t)(lo >> 32))) + n + hi +
		    fold(lo, hi);
		return avalanche(h);
	}
	if (n >= 4) {
		h = get32(p + n - 4) + ((uint64_t)get32(p) << 32);
		h ^= get64(secret + 8) ^ get64(secret + 16);
		h ^= rotate(h, 49) ^ rotate(h, 24);
		h *= PMX_2;
		h = (h ^ ((h >> 35) + n)) * PMX_2;
		return h ^ h >> 28;
	}
	if (n) {
		uint32_t x = (uint32_t)p[0] << 16 | (uint32_t)p[n / 2] << 24 | p[n - 1] | n << 8;

		return avalanche64(x ^ (uint64_t)(get32(secret) ^ get32(secret + 4)));
	}
	return avalanche64(get64(secret + 56) ^ get64(secret + 64));
}

CQ_DEVICE uint64_t hash_to_128(const uint8_t *p, uint32_t n)
{
	uint64_t h = n * P64_1;
	int i;

	for (i = (int)(n - 1) / 32; i >= 0; i--) {
		h += mix16(p + 16 * i, secret + 32 * i);
		h += mix16(p + n - 16 * (i + 1), secret + 32 * i + 16);
	}
	return avalanche(h);
}

CQ_DEVICE uint64_t hash_to_240(const uint8_t *p, uint32_t n)
{
	uint64_t h = n * P64_1;
	uint32_t i;

	for (i = 0; i < 8; i++)
		h += mix16(p + 16 * i, secret + 16 * i);
	h = avalanche(h);
	for (; i < n / 16; i++)
		h += mix16(p + 16 * i, secret + 16 * (i - 8) + 3);
	h += mix16(p + n - 16, secret + 136 - 17);
	return avalanche(h);
}

CQ_DEVICE uint64_t hash_short(const uint8_t *p, uint32_t n)
{
	if (n <= 16)
		return hash_to_16(p, n);
	return n <= 128 ? hash_to_128(p, n) : hash_to_240(p, n);
}

CQ_DEVICE uint64_t start_of(uint32_t i)
{
	switch (i) {
	case 0: return P32_3;
	case 1: return P64_1;
	case 2: return P64_2;
	case 3: return P64_3;
	case 4: return P64_4;
	case 5: return P32_2;
	case 6: return P64_5;
	default: return P32_1;
	}
}

/* One stripe into accumulator @i, whose neighbour's data are added as they are. */
CQ_DEVICE uint64_t stripe(uint64_t acc, const uint8_t *p, const uint8_t *key, uint32_t i)
{
	uint64_t mixed = get64(p + 8 * i) ^ get64(key + 8 * i);

	return acc + get64(p + 8 * (i ^ 1)) + (mixed & 0xffffffffu) * (mixed >> 32);
}

/* Accumulator @i over all of a chunk of more than 240 bytes. */
CQ_DEVICE uint64_t accumulate(const uint8_t *p, uint32_t n, uint32_t i)
{
	uint32_t stripes = (n - 1) / STRIPE, s;
	uint64_t acc = start_of(i);

	for (s = 0; s < stripes; s++) {
		acc = stripe(acc, p + STRIPE * s, secret + 8 * (s % STRIPES), i);
		if (s % STRIPES == STRIPES - 1)
			acc = (acc ^ acc >> 47 ^ get64(secret + SECRET - STRIPE + 8 * i)) * P32_1;
	}
	return stripe(acc, p + n - STRIPE, secret + SECRET - STRIPE - 7, i);
}

/*
 * Grid: chunks by CQKD_CHECKS, payloads. All lanes take part in the shuffles,
 * those of short and missing chunks with nothing to give.
 */
CQ_KERNEL(CQKD_THREADS, cqk_check, (struct cqkd_checks p))
{
	uint64_t chunk = (uint64_t)blockIdx.x * CQKD_CHECKS + threadIdx.x / 8, acc = 0, left;
	uint32_t i = threadIdx.x % 8, n = 0;
	const uint8_t *data = nullptr;
	struct cqkd_check job = {};

	if (blockIdx.y >= *cqkd_ptr<const uint32_t>(p.n_jobs))
		return;
	job = cqkd_ptr<const struct cqkd_check>(p.jobs)[blockIdx.y];
	if (chunk * CQKD_CHUNK < job.bytes) {
		left = job.bytes - chunk * CQKD_CHUNK;
		n = left < CQKD_CHUNK ? (uint32_t)left : CQKD_CHUNK;
		data = cqkd_ptr<const uint8_t>(job.data) + chunk * CQKD_CHUNK;
	}
	if (n > 240)
		acc = accumulate(data, n, i) ^ get64(secret + 11 + 8 * i);
	acc = fold(acc, __shfl_xor_sync(0xffffffffu, acc, 1));	/* pairs */
	acc += __shfl_xor_sync(0xffffffffu, acc, 2);
	acc += __shfl_xor_sync(0xffffffffu, acc, 4);
	if (i || !n)
		return;
	acc = n > 240 ? avalanche(acc + n * P64_1) : hash_short(data, n);
	cqkd_ptr<uint64_t>(job.out)[chunk] = acc;
}

/* A thread takes 16 bytes of a header. */
CQ_KERNEL(CQKD_THREADS, cqk_gather, (struct cqkd_gather p))
{
	uint64_t i = (uint64_t)blockIdx.x * CQKD_THREADS + threadIdx.x;
	uint32_t part = i % (CQKD_HEADER / 16);

	if (i / (CQKD_HEADER / 16) >= p.n)
		return;
	cqkd_ptr<uint4>(p.to)[i] = cqkd_ptr<const uint4>(
		cqkd_ptr<const uint64_t>(p.from)[i / (CQKD_HEADER / 16)])[part];
}
