/* SPDX-License-Identifier: MIT */
/* Sums within registers of 16 floats; the including file has included tile.h. */
#ifndef CQK_SUM_AVX512_H
#define CQK_SUM_AVX512_H

#define SHUFFLED(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)

/* Sums over lanes of 128 bits: (x0, x1, y0, y1), each of two neighbours. */
INLINE vf sum_lanes(vf x, vf y)
{
	return SHUFFLED(x, y, 0, 1, 2, 3, 8, 9, 10, 11,
			16, 17, 18, 19, 24, 25, 26, 27) +
	       SHUFFLED(x, y, 4, 5, 6, 7, 12, 13, 14, 15,
			20, 21, 22, 23, 28, 29, 30, 31);
}

/* Sums of 16 accumulators, in order. */
INLINE vf sum16(const vf *a)
{
	vf x[8], y[4];
	int i;

	for (i = 0; i < 8; i++)
		x[i] = SHUFFLED(a[2 * i], a[2 * i + 1], 0, 16, 1, 17, 4, 20, 5, 21,
				8, 24, 9, 25, 12, 28, 13, 29) +
		       SHUFFLED(a[2 * i], a[2 * i + 1], 2, 18, 3, 19, 6, 22, 7, 23,
				10, 26, 11, 27, 14, 30, 15, 31);
	for (i = 0; i < 4; i++)
		y[i] = SHUFFLED(x[2 * i], x[2 * i + 1], 0, 1, 16, 17, 4, 5, 20, 21,
				8, 9, 24, 25, 12, 13, 28, 29) +
		       SHUFFLED(x[2 * i], x[2 * i + 1], 2, 3, 18, 19, 6, 7, 22, 23,
				10, 11, 26, 27, 14, 15, 30, 31);
	return sum_lanes(sum_lanes(y[0], y[1]), sum_lanes(y[2], y[3]));
}

#endif /* CQK_SUM_AVX512_H */
