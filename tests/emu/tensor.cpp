// SPDX-License-Identifier: MIT
/*
 * Asynchronous copies and the matrix instructions.
 */
#include "tests/emu/job.hpp"
#include "tests/emu/tensor.hpp"

namespace cuemu {

static bool aligned(const void *p, size_t to)
{
	return reinterpret_cast<uintptr_t>(p) % to == 0;
}

void copy_async(void *s, const void *g, unsigned int bytes, unsigned int size, struct place at)
{
	struct fiber *f = self();

	if (bytes > size)
		fault(&at, "cp.async of %u bytes, at most %u", bytes, size);
	if (!is_shared(f->eng, s, size))
		fault(&at, "cp.async to %p, which is not shared memory of the block", s);
	if (!aligned(s, size) || !aligned(g, size))
		fault(&at, "cp.async of %u bytes from %p to %p: not aligned to that", size, g, s);
	race_access(f, s, size, true, false, __builtin_return_address(0));
	race_pending(f, s, size, true);
	memset(s, 0xff, size);
	f->eng->copies[f->index].push_back({ s, g, bytes, size - bytes, f->group });
}

void copy_commit()
{
	self()->group++;
}

void copy_wait(unsigned int groups)
{
	struct fiber *f = self();
	std::vector<struct copy> &copies = f->eng->copies[f->index];
	size_t n = 0;

	/* of @group closed groups the last @groups may stay under way */
	while (n < copies.size() && copies[n].group + groups < f->group)
		n++;
	for (size_t left = n; left; left--) {
		size_t i = draw(f->eng, (uint32_t)left);
		struct copy c = copies[i];

		race_pending(f, c.dst, c.bytes + c.zero, false);
		race_access(f, c.dst, c.bytes + c.zero, true, false, __builtin_return_address(0));
		memcpy(c.dst, c.src, c.bytes);
		memset(static_cast<char *>(c.dst) + c.bytes, 0, c.zero);
		copies[i] = copies[left - 1];
	}
	copies.erase(copies.begin(), copies.begin() + (ptrdiff_t)n);
}

void load_matrices(const char *op, uint32_t *r, const void *s, unsigned int n, bool trans,
		   struct place at)
{
	struct fiber *f = self();
	union operand *mine = operand_of(f);

	/* lanes 8 i .. 8 i + 7 have the rows of matrix i; the others' are not looked at */
	if (f->lane < 8 * n && !is_shared(f->eng, s, 16))
		fault(&at, "%s of row %p, which is not shared memory of the block", op, s);
	if (f->lane < 8 * n && !aligned(s, 16))
		fault(&at, "%s of row %p: not aligned to 16 bytes", op, s);
	if (f->lane < 8 * n)
		race_access(f, s, 16, false, false, __builtin_return_address(0));
	mine->row = s;
	collective(op, ~0u, at, [&](struct warp *w, uint32_t group) {
		uint16_t m[4][8][8];

		if (group != ~0u)
			fault(&at, "%s by a warp of which lanes have left", op);
		for (unsigned int i = 0; i < 8 * n; i++)
			memcpy(m[i / 8][i % 8], w->lanes[i].row, 16);
		for (unsigned int lane = 0; lane < 32; lane++)
			for (unsigned int i = 0; i < n; i++) {
				unsigned int x = lane / 4, y = lane % 4 * 2;
				uint16_t lo = trans ? m[i][y][x] : m[i][x][y];
				uint16_t hi = trans ? m[i][y + 1][x] : m[i][x][y + 1];

				w->lanes[lane].r[i] = lo | (uint32_t)hi << 16;
			}
	});
	for (unsigned int i = 0; i < n; i++)
		r[i] = mine->r[i];
}

uint32_t transpose(const char *op, uint32_t a, struct place at)
{
	union operand *mine = operand_of(self());

	mine->r[0] = a;
	collective(op, ~0u, at, [&](struct warp *w, uint32_t group) {
		uint16_t m[8][8];

		if (group != ~0u)
			fault(&at, "%s by a warp of which lanes have left", op);
		for (unsigned int lane = 0; lane < 32; lane++)
			memcpy(&m[lane / 4][lane % 4 * 2], w->lanes[lane].r, 4);
		for (unsigned int lane = 0; lane < 32; lane++) {
			unsigned int x = lane / 4, y = lane % 4 * 2;

			w->lanes[lane].r[0] = m[y][x] | (uint32_t)m[y + 1][x] << 16;
		}
	});
	return mine->r[0];
}

static float element(uint32_t pair, unsigned int i, enum mma_type type)
{
	uint16_t bits = (uint16_t)(pair >> 16 * i);

	return type == MMA_F16 ? half_value(bits) : bf16_value(bits);
}

/*
 * Where the fragments of lane l lie, g = l / 4 and t = l % 4: a[i] holds row
 * g + 8 (i % 2), columns 2 t and 2 t + 1 of 8 (i / 2); b[i] rows 2 t and
 * 2 t + 1 of 8 i, column g; d[i] row g + 8 (i / 2), column 2 t + i % 2.
 */
static void multiply(struct warp *w, unsigned int k, enum mma_type type)
{
	float a[16][16], b[16][8], d[16][8];

	for (unsigned int lane = 0; lane < 32; lane++) {
		union operand *o = &w->lanes[lane];
		unsigned int g = lane / 4, t = lane % 4;

		for (unsigned int i = 0; i < 2 * (k / 8); i++)
			for (unsigned int h = 0; h < 2; h++)
				a[g + 8 * (i % 2)][8 * (i / 2) + 2 * t + h] =
					element(o->mma.a[i], h, type);
		for (unsigned int i = 0; i < k / 8; i++)
			for (unsigned int h = 0; h < 2; h++)
				b[8 * i + 2 * t + h][g] = element(o->mma.b[i], h, type);
		for (unsigned int i = 0; i < 4; i++)
			d[g + 8 * (i / 2)][2 * t + i % 2] = o->mma.d[i];
	}
	for (unsigned int row = 0; row < 16; row++)
		for (unsigned int i = 0; i < k; i++)
			for (unsigned int col = 0; col < 8; col++)
				d[row][col] += a[row][i] * b[i][col];
	for (unsigned int lane = 0; lane < 32; lane++)
		for (unsigned int i = 0; i < 4; i++)
			w->lanes[lane].mma.d[i] = d[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2];
}

void mma(const char *op, float *d, const uint32_t *a, const uint32_t *b, unsigned int k,
	 enum mma_type type, struct place at)
{
	union operand *mine = operand_of(self());

	memcpy(mine->mma.a, a, k / 4 * sizeof(*a));
	memcpy(mine->mma.b, b, k / 8 * sizeof(*b));
	memcpy(mine->mma.d, d, sizeof(mine->mma.d));
	collective(op, ~0u, at, [&](struct warp *w, uint32_t group) {
		if (group != ~0u)
			fault(&at, "%s by a warp of which lanes have left", op);
		multiply(w, k, type);
	});
	memcpy(d, mine->mma.d, sizeof(mine->mma.d));
}

} /* namespace cuemu */
