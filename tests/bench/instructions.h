/* SPDX-License-Identifier: MIT */
/*
 * Instructions of the attention's loops, which no noise on the machine changes.
 *
 * Portable code and AVX2: one call under callgrind, which counts what the call
 * executes. AVX-512, which valgrind 3.19 does not know: the length of the
 * innermost loops in the program's own disassembly, of each row it has in the
 * kernel table.
 *
 * The child under callgrind is the same program; CQ_COUNT= names its case.
 */
#ifndef BENCH_INSTRUCTIONS_H
#define BENCH_INSTRUCTIONS_H

#include <stdio.h>
#include <sys/wait.h>
#include "tests/kernels/toy.h"

#define COUNT_PAGES 256		/* tables of a call are paid by so many */
#define COUNT_SLOW 16		/* of portable code, tables paid in part */
#define COUNT_PAYLOADS 4	/* pages in memory, used in turn */
#define COUNT_LOOPS 32		/* of one function, jumps back */

/**
 * struct count_case - one call: one kv head, 4 query heads, 128 channels
 * @impl:   "portable" or "avx2"
 * @c:      channels per group of K and V; 0: halves
 * @keys:   CQK_KEYS_NONE or CQK_KEYS_PRE_ROPE
 * @expect: instructions per token, gcc 12 with the project's flags
 */
struct count_case {
	const char *impl;
	uint32_t c, keys;
	double expect;
};

/* Rows of AVX-512, each compiled from a file of its own. */
enum count_row {
	ROW_VBMI, ROW_VNNI, ROW_BW,
	COUNT_ROWS
};

/**
 * struct count_loop - an innermost loop of AVX-512, the longest of its function, or
 *                     a function without loops
 * @name:   function
 * @what:   what one turn of the loop is for
 * @turns:  of the loop per token and kv head with 4 query heads, 128 channels
 * @expect: [count_row] instructions in one turn, gcc 12 with the project's flags
 */
struct count_loop {
	const char *name, *what;
	double turns;
	uint32_t expect[COUNT_ROWS];
};

static const struct count_case count_cases[] = {
	{ "avx2", 0, CQK_KEYS_NONE, 388.3 },
	{ "avx2", 8, CQK_KEYS_NONE, 310.3 },
	{ "avx2", 8, CQK_KEYS_PRE_ROPE, 617.4 },
	{ "avx2", 4, CQK_KEYS_NONE, 571.5 },
	{ "avx2", 4, CQK_KEYS_PRE_ROPE, 846.7 },
	{ "avx2", 2, CQK_KEYS_NONE, 1072.4 },
	{ "avx2", 2, CQK_KEYS_PRE_ROPE, 1280.4 },
	{ "portable", 0, CQK_KEYS_NONE, 9007.9 },
	{ "portable", 8, CQK_KEYS_NONE, 872.4 },
	{ "portable", 8, CQK_KEYS_PRE_ROPE, 2171.8 },
	{ "portable", 2, CQK_KEYS_PRE_ROPE, 3293.8 },
};

static const char *const count_rows[COUNT_ROWS] = {
	[ROW_VBMI] = "avx512", [ROW_VNNI] = "avx512vnni", [ROW_BW] = "avx512bw",
};

static const struct count_loop count_loops[] = {
	{ "keys_turned_4", "a pair of channels of a page", 1, { 74, 92, 107 } },
	{ "keys_plain_4", "a pair of channels of a page", 1, { 63, 97, 112 } },
	{ "wide_planes", "a group of a page, codes of 10 bits", 0.5, { 246, 246, 246 } },
	{ "keys_wide_turned_4", "a pair of channels of a page, the same", 1, { 45, 45, 61 } },
	{ "keys_wide_plain_4", "a pair of channels of a page, the same", 1, { 36, 36, 52 } },
	{ "values_wide_4", "two channels of a page, the same", 1, { 34, 34, 56 } },
	{ "exact_turned_4", "a pair of channels of a page", 1, { 132, 148, 148 } },
	{ "lut_keys", "a group of four pages for a vector, 8c8b", 0.25, { 78, 161, 175 } },
	{ "batch_values", "two channels of a page", 1, { 61, 60, 88 } },
	{ "lane_softmax", "a page of a vector, masks included", 4 / 64.0,
	  { 331, 331, 331 } },
	{ "rows_scores_4", "16 pairs of channels of four tokens, turned", 1,
	  { 104, 104, 104 } },
	{ "rows_accum_4", "64 channels of a token", 2, { 39, 39, 39 } },
};

/* --- the call --- */

struct count_call {
	struct toy toy;
	struct cqk_attn a;
	struct cqk_block blocks[COUNT_PAGES];
	struct cqk_span spans[COUNT_PAGES];
	uint32_t row_pos;
	float q[4 * 128], o[4 * 128];
};

/* What callgrind counts, found by its name. */
__attribute__((noinline)) static void counted_call(const struct cqk_ops *ops,
						   const struct cqk_attn *a)
{
	ops->attention(a);
	__asm__ volatile("" ::: "memory");
}

static inline void count_fill(struct count_call *x, uint8_t *mem, uint32_t pages)
{
	uint32_t p, i;

	for (p = 0; p < COUNT_PAYLOADS; p++)
		toy_payload(&x->toy, mem + p * x->toy.m.payload);
	for (p = 0; p < pages; p++) {
		x->blocks[p] = (struct cqk_block){
			.base = mem + p % COUNT_PAYLOADS * x->toy.m.payload,
			.kind = CQK_BLOCK_CODES, .tokens = 64, .span_first = p,
			.n_spans = 1 };
		x->spans[p] = (struct cqk_span){ .mask = ~0ull, .n_rows = 1, .pos = p * 64 };
	}
	for (i = 0; i < ARRAY_SIZE(x->q); i++)
		x->q[i] = toy_normal();
}

static inline uint32_t count_pages(const struct count_case *c)
{
	return strcmp(c->impl, "portable") ? COUNT_PAGES : COUNT_SLOW;
}

/* One call of @c; false if a result is no number. */
static inline bool count_run(const struct count_case *c)
{
	const struct toy_opts o = {
		.n_layers = 1, .n_heads = 4, .n_kv_heads = 1, .d = 128,
		.keys = c->keys, .rope_dim = 128, .ck = c->c, .cv = c->c, .i8 = true,
	};
	static struct count_call x;
	const struct cqk_ops *ops = cqk_select(c->impl);
	uint32_t pages = count_pages(c), i;
	bool good = true;
	uint8_t *mem;

	if (!ops)
		return false;
	toy_init(&x.toy, &o, pages * 64 + 1);
	mem = toy_alloc(COUNT_PAYLOADS * x.toy.m.payload);
	count_fill(&x, mem, pages);
	x.row_pos = pages * 64;
	x.a = (struct cqk_attn){
		.model = &x.toy.m, .rope = &x.toy.rope, .head_end = 1,
		.blocks = x.blocks, .n_blocks = pages, .spans = x.spans,
		.row_pos = &x.row_pos, .n_rows = 1, .scale = 0.0884f,
		.q = { x.q, CQ_F32, 0, 4 * 128, 128 },
		.o = { x.o, CQ_F32, 0, 4 * 128, 128 },
		.scratch = toy_alloc(ops->scratch_bytes(&x.toy.m, 1)),
	};
	counted_call(ops, &x.a);
	for (i = 0; i < ARRAY_SIZE(x.o); i++)
		good &= isfinite(x.o[i]);
	free(x.a.scratch);
	free(mem);
	toy_free(&x.toy);
	return good;
}

/* --- callgrind --- */

/* The case that CQ_COUNT= names by its number, NULL if it names none. */
static inline const struct count_case *count_wanted(void)
{
	const char *env = getenv("CQ_COUNT");
	size_t i = env ? strtoul(env, NULL, 10) : SIZE_MAX;

	return i < ARRAY_SIZE(count_cases) ? &count_cases[i] : NULL;
}

/* Instructions per token of case @i; 0: no valgrind here. @arg: of this program. */
static inline double count_grind(size_t i, const char *arg)
{
	char cmd[512], line[256];
	double total = 0;
	FILE *p;

	snprintf(cmd, sizeof(cmd), "CQ_COUNT=%zu exec valgrind --tool=callgrind "
		 "--callgrind-out-file=/dev/null --toggle-collect=counted_call "
		 "/proc/%d/exe %s 2>&1", i, (int)getpid(), arg);
	p = popen(cmd, "re");
	if (!p)
		return 0;
	while (fgets(line, sizeof(line), p)) {
		const char *at = strstr(line, "Collected :");

		if (at)
			total = strtod(at + 11, NULL);
	}
	return pclose(p) ? 0 : total / (count_pages(&count_cases[i]) * 64);
}

/* --- loops --- */

/* A function's jumps back: instructions [@from, @to] by number. */
struct count_back {
	uint32_t from, to;
};

struct count_fn {
	uint64_t at[8192];
	uint32_t n, n_back;
	struct count_back back[COUNT_LOOPS];
};

static inline void count_insn(struct count_fn *f, const char *line)
{
	unsigned long long at, to;
	char word[32];
	uint32_t i;

	if (sscanf(line, " %llx: %31s %llx", &at, word, &to) < 2 ||
	    f->n == ARRAY_SIZE(f->at))
		return;
	f->at[f->n++] = at;
	if (word[0] != 'j' || sscanf(line, " %*x: %*s %llx", &to) != 1 || to > at)
		return;
	for (i = 0; i < f->n; i++)
		if (f->at[i] == to && f->n_back < COUNT_LOOPS)
			f->back[f->n_back++] = (struct count_back){ i, f->n - 1 };
}

/* The longest loop without one inside; all of a function that has no loop. */
static inline uint32_t count_longest(const struct count_fn *f)
{
	uint32_t i, k, most = f->n_back ? 0 : f->n;

	for (i = 0; i < f->n_back; i++) {
		bool inner = true;

		for (k = 0; k < f->n_back; k++)
			if (k != i && f->back[k].from >= f->back[i].from &&
			    f->back[k].to <= f->back[i].to)
				inner = false;
		if (inner)
			most = MAX(most, f->back[i].to - f->back[i].from + 1);
	}
	return most;
}

/* What objdump with @flags says of this program. */
static inline FILE *count_objdump(const char *flags)
{
	char cmd[80];

	snprintf(cmd, sizeof(cmd), "objdump %s /proc/%d/exe", flags, (int)getpid());
	return popen(cmd, "re");
}

/* The row whose file attn_<row>.c is, COUNT_ROWS if none. */
static inline size_t count_row_of(const char *file)
{
	char want[32];
	size_t row;

	for (row = 0; row < COUNT_ROWS; row++) {
		snprintf(want, sizeof(want), "attn_%s.c", count_rows[row]);
		if (!strcmp(file, want))
			break;
	}
	return row;
}

static inline size_t count_loop_of(const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(count_loops); i++)
		if (!strcmp(name, count_loops[i].name))
			break;
	return i;
}

/* Addresses of the functions, which have one name in all rows, by their files. */
static inline void count_find(uint64_t at[][COUNT_ROWS])
{
	char line[256], name[80];
	size_t row = COUNT_ROWS;
	unsigned long long addr;
	FILE *p = count_objdump("-t");

	while (p && fgets(line, sizeof(line), p)) {
		if (sscanf(line, "%*x l df *ABS* %*x %79s", name) == 1) {
			row = count_row_of(name);
		} else if (sscanf(line, "%llx l F .text %*x %79s", &addr, name) == 2) {
			size_t i = count_loop_of(name);

			if (i < ARRAY_SIZE(count_loops) && row < COUNT_ROWS)
				at[i][row] = addr;
		}
	}
	if (p)
		pclose(p);
}

/* Where the length of the loop of the function at @addr goes; NULL: not asked for. */
static inline uint32_t *count_place(uint64_t at[][COUNT_ROWS], uint64_t addr,
				    uint32_t out[][COUNT_ROWS])
{
	size_t i, row;

	for (i = 0; i < ARRAY_SIZE(count_loops); i++)
		for (row = 0; row < COUNT_ROWS; row++)
			if (at[i][row] == addr)
				return &out[i][row];
	return NULL;
}

/* Lengths of all count_loops[] into @out, 0 for what is not there. */
static inline void count_disassemble(uint32_t out[][COUNT_ROWS])
{
	uint64_t at[ARRAY_SIZE(count_loops)][COUNT_ROWS] = { 0 };
	static struct count_fn f;
	unsigned long long addr;
	uint32_t *now = NULL;
	char line[256], end;
	FILE *p;

	memset(out, 0, ARRAY_SIZE(count_loops) * sizeof(*out));
	count_find(at);
	p = count_objdump("-d --no-show-raw-insn");
	while (p && fgets(line, sizeof(line), p)) {
		if (sscanf(line, "%llx <%*[^>]>%c", &addr, &end) != 2) {
			if (now)
				count_insn(&f, line);
			continue;
		}
		if (now)
			*now = count_longest(&f);
		f.n = f.n_back = 0;
		now = count_place(at, addr, out);
	}
	if (p)
		pclose(p);
}

#endif /* BENCH_INSTRUCTIONS_H */
