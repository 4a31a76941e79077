// SPDX-License-Identifier: MIT
/*
 * Products of a warpgroup's tensor cores, with the second matrix in shared memory.
 *
 * Each warp computes its 16 rows when it begins a product, and keeps what comes of it
 * until it waits. All that is read is what the matrix descriptor says; its form and the
 * layouts are those of the PTX ISA ("Asynchronous Warpgroup Level Matrix Instructions":
 * "Matrix Descriptor Format", "Strides", "Register Fragments for wgmma.mma_async"), and
 * of CUTLASS (include/cute/arch/mma_sm90_desc.hpp; include/cute/atom/
 * mma_traits_sm90_gmma.hpp, comment of make_gmma_desc()).
 */
#include "tests/emu/hopper.hpp"
#include "tests/emu/job.hpp"

namespace cuemu {

static const uint32_t TERMS = 16;	/* of a product */
static const uint32_t MOST = 64;	/* columns */

/* Results that are under way, by lanes: where they go, and what they are. */
struct result {
	float *d[32];
	uint32_t n;			/* columns */
	uint32_t group;			/* of the last product */
	float v[32][MOST / 2];
};

/* What a product reads until it is waited for. */
struct factors {
	uint32_t group;
	struct place at;
	const void *pc;
	const uint32_t *a[32];
	uint32_t was[32][4];
	std::vector<const char *> chunks;	/* of 16 bytes, of the second matrix */
	std::vector<char> held;
};

struct of_warp {
	bool fenced;
	uint32_t closed;		/* groups */
	uint32_t begun;			/* products, of this block */
	std::vector<struct result> results;
	std::vector<struct factors> factors;
};

struct products {
	struct of_warp warp[CUEMU_MAX_THREADS / 32];
	std::vector<uint64_t> descs[CUEMU_MAX_THREADS / 128];	/* of a warpgroup, all */
};

void products_start(struct engine *eng)
{
	if (!eng->products)
		eng->products = new products();
	for (uint32_t i = 0; i < eng->warps; i++) {
		struct of_warp *w = &eng->products->warp[i];

		w->fenced = false;
		w->closed = w->begun = 0;
		w->results.clear();
		w->factors.clear();
		eng->products->descs[i / 4].clear();
	}
}

void products_end(struct engine *eng)
{
	for (uint32_t i = 0; i < eng->warps; i++)
		if (!eng->products->warp[i].results.empty())
			fault(nullptr, "left the kernel, but warp %u has not waited for its "
			      "products", i);
}

/* All lanes of a warp are here: run @run once. */
template <typename Run>
static void aligned(const char *op, struct place at, Run run)
{
	collective(op, ~0u, at, [&](struct warp *w, uint32_t group) {
		if (group != ~0u)
			fault(&at, "%s by a warp of which lanes have left", op);
		run(w, &self()->eng->products->warp[self()->warp]);
	});
}

void wgmma_fence(struct place at)
{
	aligned("cq_wgmma_fence", at, [](struct warp *, struct of_warp *p) { p->fenced = true; });
}

void wgmma_commit(struct place at)
{
	aligned("cq_wgmma_commit", at, [](struct warp *, struct of_warp *p) { p->closed++; });
}

/*
 * Bits 0-13: address / 16; 16-29 leading, 32-45 stride dimension byte offset / 16; 49-51
 * base offset; 62-63 swizzle, of which 1 is that by 128 bytes.
 */
static void check_desc(const char *op, uint64_t desc, struct place at)
{
	if (desc >> 62 != 1 || desc & 0x3fffc000c000c000u)
		fault(&at, "%s: descriptor %#llx is not of 128-byte swizzle without a base offset",
		      op, (unsigned long long)desc);
	if (desc >> 3 & 7)
		fault(&at, "%s: descriptor %#llx does not begin in the first row of a pattern of "
		      "1024 bytes", op, (unsigned long long)desc);
}

/*
 * The byte of shared memory where 8 halves are. Term by term (K-major): ((8,m),(T,2)) :
 * ((8T,SBO),(1,T)): 8 columns are 128 bytes apart, each 8 further SBO; terms follow each
 * other, and LBO is not looked at. Column by column (MN-major): ((T,8,m),(8,k)) :
 * ((1,T,LBO),(8T,SBO)): 64 columns follow each other, each 64 further LBO; 8 terms are 128
 * bytes apart, each 8 further SBO. T are 16 bytes. Then bits 4-6 of the address are
 * exchanged by bits 7-9.
 */
static uint32_t chunk_at(uint64_t desc, bool trans, uint32_t col, uint32_t term)
{
	uint32_t start = (uint32_t)(desc & 0x3fff) << 4, lbo = (uint32_t)(desc >> 16 & 0x3fff) << 4;
	uint32_t sbo = (uint32_t)(desc >> 32 & 0x3fff) << 4, at;

	if (trans)
		at = start + col / 64 * lbo + col % 64 * 2 + term / 8 * sbo + term % 8 * 128;
	else
		at = start + col / 8 * sbo + col % 8 * 128 + term * 2;
	return at ^ (at >> 7 & 7) << 4;
}

/* Where the second matrix is, chunk by chunk: [column][2], or [term][columns / 8]. */
static void find_chunks(const char *op, uint64_t desc, bool trans, uint32_t n,
			struct factors *f, struct place at)
{
	const struct engine *eng = self()->eng;
	const char *base = eng->dyn - shared_address(eng->dyn, at);
	uint32_t chunks = n * TERMS / 8;

	for (uint32_t i = 0; i < chunks; i++) {
		uint32_t col = trans ? i % (n / 8) * 8 : i / 2;
		uint32_t term = trans ? i / (n / 8) : i % 2 * 8;
		const char *p = base + chunk_at(desc, trans, col, term);

		if (p < eng->dyn || p + 16 > eng->dyn + eng->dyn_bytes)
			fault(&at, "%s: descriptor %#llx leads out of shared memory", op,
			      (unsigned long long)desc);
		f->chunks.push_back(p);
	}
}

/* What is there now. */
static std::vector<char> read_chunks(const struct factors &f)
{
	std::vector<char> held(f.chunks.size() * 16);

	for (size_t i = 0; i < f.chunks.size(); i++) {
		race_by_tensor(self(), f.chunks[i], 16, f.pc);
		memcpy(&held[i * 16], f.chunks[i], 16);
	}
	return held;
}

static bool poisoned(const struct result &r)
{
	for (uint32_t lane = 0; lane < 32; lane++)
		for (uint32_t i = 0; i < r.n / 2; i++) {
			uint32_t bits;

			memcpy(&bits, &r.d[lane][i], 4);
			if (bits != ~0u)
				return false;
		}
	return true;
}

/* The results that a product adds to: of one under way, or what registers hold. */
static struct result *result_of(const char *op, const struct warp *w, struct of_warp *p,
				uint32_t n, struct place at)
{
	for (struct result &r : p->results) {
		if (r.d[0] != w->lanes[0].product.d)
			continue;
		if (r.n != n || !poisoned(r))
			fault(&at, "%s: its results have been touched since another product of "
			      "them began", op);
		return &r;
	}
	p->results.emplace_back();
	struct result *r = &p->results.back();

	r->n = n;
	for (uint32_t lane = 0; lane < 32; lane++) {
		r->d[lane] = w->lanes[lane].product.d;
		memcpy(r->v[lane], r->d[lane], n / 2 * sizeof(float));
		memset(r->d[lane], 0xff, n / 2 * sizeof(float));
	}
	return r;
}

/*
 * Where fragments of lane l lie, g = l / 4 and t = l % 4: a[i] holds row g + 8 (i % 2),
 * terms 2 t and 2 t + 1 of 8 (i / 2); d[i] row g + 8 (i / 2 % 2), column 8 (i / 4) + 2 t +
 * i % 2.
 */
static void multiply(struct result *r, const struct factors &f, bool trans, bool add)
{
	const char *held = f.held.data();
	float a[16][TERMS], b[TERMS][MOST], d[MOST];
	uint16_t bits;

	for (uint32_t i = 0; i < r->n * TERMS; i++) {
		uint32_t col = trans ? i % r->n : i / TERMS, term = trans ? i / r->n : i % TERMS;

		memcpy(&bits, held + i * 2, 2);
		b[term][col] = half_value(bits);
	}
	for (uint32_t lane = 0; lane < 32; lane++)
		for (uint32_t i = 0; i < 8; i++)
			a[lane / 4 + 8 * (i / 2 % 2)][8 * (i / 4) + lane % 4 * 2 + i % 2] =
				half_value((uint16_t)(f.was[lane][i / 2] >> 16 * (i % 2)));
	for (uint32_t row = 0; row < 16; row++) {
		float *v[4];

		for (uint32_t t = 0; t < 4; t++)
			v[t] = &r->v[row % 8 * 4 + t][row / 8 * 2];
		for (uint32_t col = 0; col < r->n; col++)
			d[col] = add ? v[col % 8 / 2][col / 8 * 4 + col % 2] : 0;
		for (uint32_t k = 0; k < TERMS; k++)
			for (uint32_t col = 0; col < r->n; col++)
				d[col] += a[row][k] * b[k][col];
		for (uint32_t col = 0; col < r->n; col++)
			v[col % 8 / 2][col / 8 * 4 + col % 2] = d[col];
	}
}

/* The other warps of the warpgroup have to compute the same. */
static void check_group(const char *op, struct of_warp *p, uint64_t desc, struct place at)
{
	std::vector<uint64_t> &all = self()->eng->products->descs[self()->warp / 4];

	if (p->begun == all.size())
		all.push_back(desc);
	else if (all[p->begun] != desc)
		fault(&at, "%s with descriptor %#llx, but another warp of the warpgroup has %#llx",
		      op, (unsigned long long)desc, (unsigned long long)all[p->begun]);
	p->begun++;
}

void wgmma(const char *op, uint32_t n, bool trans, float *d, const uint32_t *a, uint64_t desc,
	   bool add, struct place at)
{
	const void *pc = __builtin_return_address(0);

	check_desc(op, desc, at);
	operand_of(self())->product = { d, a, desc, add };
	aligned(op, at, [&](struct warp *w, struct of_warp *p) {
		struct factors f;
		struct result *r;

		for (uint32_t i = 0; i < 32; i++)
			if (w->lanes[i].product.desc != desc || w->lanes[i].product.add != add)
				fault(&at, "%s: lanes of a warp have different descriptors", op);
		check_group(op, p, desc, at);
		if (!p->fenced)
			fault(&at, "%s without cq_wgmma_fence() before it: registers may not hold "
			      "what was written to them", op);
		r = result_of(op, w, p, n, at);
		f.group = r->group = p->closed;
		f.at = at;
		f.pc = pc;
		for (uint32_t i = 0; i < 32; i++) {
			f.a[i] = w->lanes[i].product.a;
			memcpy(f.was[i], f.a[i], sizeof(f.was[i]));
		}
		find_chunks(op, desc, trans, n, &f, at);
		f.held = read_chunks(f);
		multiply(r, f, trans, add);
		p->factors.push_back(std::move(f));
	});
}

/* A product ends: what it has read is still there. */
static void check_factors(const struct factors &f)
{
	for (uint32_t i = 0; i < 32; i++)
		if (memcmp(f.a[i], f.was[i], sizeof(f.was[i])))
			fault(&f.at, "lane %u has changed the first matrix before the product was "
			      "waited for", i);
	if (read_chunks(f) != f.held)
		fault(&f.at, "the second matrix was written before the product was waited for");
}

static void finish(struct result &r, struct place at)
{
	if (!poisoned(r))
		fault(&at, "results were written before they were waited for");
	for (uint32_t lane = 0; lane < 32; lane++)
		memcpy(r.d[lane], r.v[lane], r.n / 2 * sizeof(float));
}

void wgmma_wait(uint32_t groups, struct place at)
{
	aligned("cq_wgmma_wait", at, [&](struct warp *, struct of_warp *p) {
		size_t i = 0, n = 0;

		p->fenced = false;
		while (i < p->factors.size() && p->factors[i].group + groups < p->closed)
			check_factors(p->factors[i++]);
		p->factors.erase(p->factors.begin(), p->factors.begin() + (ptrdiff_t)i);
		for (struct result &r : p->results) {
			if (r.group + groups < p->closed)
				finish(r, at);
			else
				p->results[n++] = r;
		}
		p->results.resize(n);
	});
}

} /* namespace cuemu */
