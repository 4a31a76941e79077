/* SPDX-License-Identifier: MIT */
/*
 * 8-bit centroids as [channel][256], with NEON: 16 tokens of a channel are four
 * look-ups in 64 entries each, of which three find nothing. The including file
 * includes tile.h with vectors of 16 bytes.
 */
#ifndef CQK_PLANES_NEON_H
#define CQK_PLANES_NEON_H

#include <arm_neon.h>

#define LOOK 16		/* tokens of one look-up: four registers of floats */

/* Codes of LOOK tokens, less 64 times the place of the part of the table. */
struct places {
	uint8x16_t at[4];
};

/* Centroids of a channel. */
struct table {
	int8_t at[CQK_CENTROIDS];
};

/* Channels in order; codes are loaded once per group. */
struct walk {
	const uint8_t *codes;
	const int8_t *plane;
	uint32_t left, c;
	struct places now;
};

INLINE void walk_load(struct walk *w)
{
	const uint8x16_t part = vdupq_n_u8(64);
	int i;

	w->now.at[0] = vld1q_u8(w->codes);
	for (i = 1; i < 4; i++)
		w->now.at[i] = vsubq_u8(w->now.at[i - 1], part);
	w->codes += CQK_T;
	w->left = w->c;
}

/* From channel @ch of @src on, tokens @t .. @t + LOOK - 1. */
INLINE struct walk walk_from(const struct cqk_src *src, uint32_t ch, uint32_t t)
{
	struct walk w = { .c = src->cb->code.channels };

	w.codes = src->data + ch / w.c * CQK_T + t;
	w.plane = src->cb->i8 + ((size_t)src->kv_head * src->d + ch) * CQK_CENTROIDS;
	walk_load(&w);
	w.left -= ch % w.c;
	return w;
}

/*
 * Entries of a table of 256. Not by intrinsics: what loads four registers for a
 * look-up has a type of its own there, and gcc 12 then copies them about.
 */
INLINE int8x16_t look_up(const int8_t *table, const struct places *p)
{
	uint8x16_t x;

	__asm__("ld1 {v28.16b-v31.16b}, [%1], #64\n\t"
		"tbl %0.16b, {v28.16b-v31.16b}, %2.16b\n\t"
		"ld1 {v28.16b-v31.16b}, [%1], #64\n\t"
		"tbx %0.16b, {v28.16b-v31.16b}, %3.16b\n\t"
		"ld1 {v28.16b-v31.16b}, [%1], #64\n\t"
		"tbx %0.16b, {v28.16b-v31.16b}, %4.16b\n\t"
		"ld1 {v28.16b-v31.16b}, [%1]\n\t"
		"tbx %0.16b, {v28.16b-v31.16b}, %5.16b"
		: "=&w" (x), "+r" (table)
		: "w" (p->at[0]), "w" (p->at[1]), "w" (p->at[2]), "w" (p->at[3]),
		  "m" (*(const struct table *)(const void *)table)
		: "v28", "v29", "v30", "v31");
	return vreinterpretq_s8_u8(x);
}

/* The next channel's centroids as floats, without their scale. */
INLINE void walk_next(struct walk *w, vf *out)
{
	int16x8_t lo, hi;
	int8x16_t x;

	if (!w->left)
		walk_load(w);
	x = look_up(w->plane, &w->now);
	lo = vmovl_s8(vget_low_s8(x));
	hi = vmovl_high_s8(x);
	out[0] = (vf)vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo)));
	out[1] = (vf)vcvtq_f32_s32(vmovl_high_s16(lo));
	out[2] = (vf)vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi)));
	out[3] = (vf)vcvtq_f32_s32(vmovl_high_s16(hi));
	w->plane += CQK_CENTROIDS;
	w->left--;
}

/* Scales of the channels of @src's head. */
INLINE const float *walk_scales(const struct cqk_src *src)
{
	return src->cb->scale + (size_t)src->kv_head * src->d;
}

#endif /* CQK_PLANES_NEON_H */
