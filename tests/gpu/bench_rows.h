/* SPDX-License-Identifier: MIT */
/*
 * What gpu_bench measures of a shape: rows, the most telling first, since there may be no
 * time for all. Include it once, after bench_rig.h.
 */
#ifndef BENCH_ROWS_H
#define BENCH_ROWS_H

#define MAX_ROWS 256
#define PREFILL 4096

static const struct shape {
	const char *name;
	uint32_t heads, kv, d;
} shapes[] = {
	{ "llama-3.1-8b", 32, 8, 128 },
	{ "llama-2-7b", 32, 32, 128 },
	{ "llama-3.1-70b-tp8", 8, 1, 128 },
	{ "toy", 4, 1, 128 },		/* for the emulation, and nothing else */
};

/* Halves last: they are no coding. */
static const struct coding {
	const char *config;
	uint32_t channels, bits;	/* @bits 0: 8 */
	bool i8;			/* centroids are bytes, with scales */
} codings[] = {
	{ "4c8b", 4, 0, false }, { "8c8b", 8, 0, false }, { "2c8b", 2, 0, false },
	{ "fp16", 0, 0, false },
};

#define CODINGS (ARRAY_SIZE(codings) - 1)

/*
 * Measured in few rows: of 10 bits, which clusters of blocks compute, and with centroids that
 * may stay bytes.
 */
static const struct coding others[] = {
	{ "8c10b", 8, 10, false }, { "8c8b-i8", 8, 0, true }, { "4c8b-i8", 4, 0, true },
};

enum row_kind { ROW_APPEND, ROW_PREFILL, ROW_DECODE, ROW_STEP, ROW_KINDS };

static const char *const row_names[ROW_KINDS] = { "append", "prefill", "decode", "step" };

/**
 * struct row - one thing to be measured
 * @what:  kind
 * @c:     coding
 * @keys:  of decode, enum cqk_keys
 * @step:  of decode; of a step the most sequences and their length; of others @step.batch
 *         tokens are appended
 * @gib:   of a step: memory for the sequences
 * @encode: of what is appended: the way to codes
 */
struct row {
	enum row_kind what;
	const struct coding *c;
	uint32_t keys;
	struct step step;
	uint32_t gib;
	enum cqk_cuda_encode encode;
};

struct rows {
	struct row at[MAX_ROWS];
	uint32_t n;
};

enum row_state { ROW_WAITING, ROW_BEGUN, ROW_DONE, ROW_NO_TIME, ROW_NO_ROOM };

/* What the process of a shape tells the one that waits for it. */
struct progress {
	char device[128], driver[32];
	bool emulated;
	enum row_state state[MAX_ROWS];
};

/* What a row is, in the words of its line. */
static inline void row_put(const struct row *r)
{
	printf(",\"config\":\"%s\"", r->c->config);
	if (r->what == ROW_DECODE)
		printf(",\"keys\":\"%s\",\"sharing\":\"%s\",\"batch\":%u,\"context\":%u",
		       r->keys == CQK_KEYS_PRE_ROPE ? "pre-rope" : "rotated",
		       r->step.prefix ? "prefix" : "private", r->step.batch, r->step.context);
	else if (r->what == ROW_STEP)
		printf(",\"gib\":%u,\"context\":%u", r->gib, r->step.context);
	else
		printf(",\"encode\":\"%s\",\"rows\":%u", cqk_cuda_encode_name(r->encode),
		       r->step.batch);
}

static inline void row_add(struct rows *rows, struct row row)
{
	ASSERT(rows->n < MAX_ROWS);
	rows->at[rows->n++] = row;
}

static inline void rows_add_decode(struct rows *rows, struct step step, uint32_t keys)
{
	uint32_t c;

	for (c = 0; c < CODINGS; c++)
		row_add(rows, (struct row){ ROW_DECODE, &codings[c], keys, step, 0, 0 });
}

/* Steps whose sequences are all that so much memory holds, and of fp16 the same. */
static inline void rows_add_steps(struct rows *rows, bool toy)
{
	static const uint32_t gib[] = { 40, 16, 8 };
	struct step most = { toy ? 2 : 256, toy ? 256 : 8192, false };
	uint32_t i, c;

	for (i = 0; i < ARRAY_SIZE(gib); i++)
		for (c = 0; c < ARRAY_SIZE(codings); c++)
			row_add(rows, (struct row){ ROW_STEP, &codings[(c + CODINGS) %
						    ARRAY_SIZE(codings)],
						    CQK_KEYS_PRE_ROPE, most, gib[i], 0 });
}

/* The same step, but for what rows_of() has first. */
static inline bool rows_have(const struct rows *rows, struct step step, uint32_t keys)
{
	uint32_t i;

	for (i = 0; i < rows->n; i++)
		if (rows->at[i].what == ROW_DECODE && !rows->at[i].c->bits &&
		    !rows->at[i].c->i8 &&
		    rows->at[i].keys == keys &&
		    rows->at[i].step.batch == step.batch &&
		    rows->at[i].step.context == step.context &&
		    rows->at[i].step.prefix == step.prefix)
			return true;
	return false;
}

/*
 * What is appended, since that is soon done; the cases that Documentation/gpu.md has a
 * prediction of; of the @first shape whole steps; all other cases.
 */
static inline void rows_of(struct rows *rows, const struct shape *s, bool first, bool toy)
{
	static const struct step telling[] = {
		{ 8, 32768, false }, { 64, 32768, true }, { 64, 32768, false },
		{ 16, 32768, true }, { 8, 32768, true },
	};
	static const struct step other_steps[] = { { 8, 32768, false }, { 64, 32768, false } };
	static const uint32_t batches[] = { 8, 64, 1, 256 }, contexts[] = { 32768, 8192, 131072 };
	static const uint32_t toy_batches[] = { 4 }, toy_contexts[] = { 256 };
	const uint32_t *batch = toy ? toy_batches : batches;
	const uint32_t *context = toy ? toy_contexts : contexts;
	const struct step toy_step = { toy_batches[0], toy_contexts[0], false };
	uint32_t n_batch = toy ? 1 : 4, n_context = toy ? 1 : 3, b, n, k;

	rows->n = 0;
	for (k = 0; k < CODINGS; k++) {
		struct row one = { ROW_APPEND, &codings[k], CQK_KEYS_PRE_ROPE,
				   { toy ? 2 : 64, 0, false }, 0, CQK_ENCODE_AUTO };
		struct row many = one;

		row_add(rows, one);
		many.what = ROW_PREFILL;
		many.step.batch = toy ? 128 : PREFILL;
		many.encode = CQK_ENCODE_ALL;
		row_add(rows, many);
		many.encode = CQK_ENCODE_NEAR;
		row_add(rows, many);
	}
	for (k = 0; k < ARRAY_SIZE(telling) && !toy; k++)
		rows_add_decode(rows, telling[k], CQK_KEYS_PRE_ROPE);
	/* of 10 bits all steps, of bytes the first */
	for (k = 0; k < (toy ? 1 : ARRAY_SIZE(other_steps)); k++)
		for (n = 0; n < (k ? 1 : ARRAY_SIZE(others)); n++)
			row_add(rows, (struct row){ ROW_DECODE, &others[n], CQK_KEYS_PRE_ROPE,
						    toy ? toy_step : other_steps[k], 0, 0 });
	if (first || toy)
		rows_add_steps(rows, toy);
	for (b = 0; b < n_batch; b++)
		for (n = 0; n < n_context; n++)
			for (k = 0; k < 4; k++) {
				struct step step = { batch[b], context[n], k / 2 };
				uint32_t keys = k % 2 ? CQK_KEYS_ROTATED : CQK_KEYS_PRE_ROPE;

				if ((!step.prefix || step.batch > 1) &&
				    !rows_have(rows, step, keys))
					rows_add_decode(rows, step, keys);
			}
}

#endif /* BENCH_ROWS_H */
