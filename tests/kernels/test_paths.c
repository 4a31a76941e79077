// SPDX-License-Identifier: MIT
/*
 * Which way a call takes: as the table of Documentation/performance.md says. A
 * line of it stands here word for word, followed by calls that it is about.
 */
#include "tests/kernels/scene.h"

/* A call and the way it is to take; @kind: 1 for centroids in fp16, K10, V10. */
struct call {
	uint32_t d, ck, cv, kind, keys, rope_dim, vectors, pages;
	const char *way;
};

#define PRE	CQK_KEYS_PRE_ROPE
#define NONE	CQK_KEYS_NONE
#define K10	2	/* keys have codes of 10 bits */
#define V10	3
#define TABLES_BY_VBMI	"tables; without VBMI transposed"
#define AVX512	"| AVX-512 | "
#define AVX2	"| AVX2 | "
#define NEON	"| NEON | "
#define PORTABLE	"| portable | "

/* @line: of the table; @calls: up to the first of no channels */
struct rule {
	const char *impl, *line;
	struct call calls[12];
};

static const struct rule rules[] = {
	{ "avx512", AVX512 "any | 9 and more | any | lanes |", {
		{ 128, 8, 8, 0, PRE, 128, 9, 1, "lanes" },
		{ 128, 8, 8, 1, NONE, 128, 9, 200, "lanes" },
		{ 128, 0, 0, 0, NONE, 128, 64, 3, "lanes" } } },
	{ "avx512", AVX512 "K or V in halves or with fp16 centroids; odd number of "
	  "channels | to 8 | any | tile |", {
		{ 128, 0, 8, 0, PRE, 128, 8, 50, "tile" },
		{ 128, 8, 0, 0, NONE, 128, 1, 50, "tile" },
		{ 128, 8, 8, 1, PRE, 128, 4, 50, "tile" },
		{ 63, 1, 1, 0, NONE, 0, 4, 50, "tile" } } },
	{ "avx512", AVX512 "K of 8 bits, not turned, 8 channels and more per group, to 32 groups | "
	  "1; 2; 3, 4; 5 to 8 | from 12; 16; 24; 40 | tables |", {
		{ 128, 8, 2, 0, NONE, 128, 1, 12, "tables" },
		{ 128, 8, 2, 0, NONE, 128, 1, 11, "transposed" },
		{ 128, 16, 8, 0, NONE, 128, 2, 16, "tables" },
		{ 128, 16, 8, 0, NONE, 128, 2, 15, "transposed" },
		{ 256, 8, 8, 0, NONE, 128, 3, 24, "tables" },
		{ 128, 8, 8, 0, PRE, 0, 4, 24, "tables" },
		{ 128, 8, 8, 0, NONE, 128, 4, 23, "transposed" },
		{ 128, 8, 8, 0, NONE, 128, 5, 40, "tables" },
		{ 128, 8, 8, 0, NONE, 128, 8, 39, "transposed" },
		{ 128, 8, 8, V10, NONE, 128, 1, 12, "tables" } } },
	{ "avx512", AVX512 "K of 8 bits, not turned, 4 to 7 channels per group, to 32 groups | "
	  "1; 2; with VBMI 3, 4; 5 to 8 | from 32; 42; 64; 106 | tables |", {
		{ 128, 4, 4, 0, NONE, 128, 1, 32, "tables" },
		{ 128, 4, 4, 0, NONE, 128, 1, 31, "transposed" },
		{ 128, 4, 4, 0, NONE, 128, 2, 42, "tables" },
		{ 128, 4, 4, 0, NONE, 128, 2, 41, "transposed" },
		{ 128, 4, 4, 0, NONE, 128, 3, 64, TABLES_BY_VBMI },
		{ 112, 7, 7, 0, NONE, 112, 4, 63, "transposed" },
		{ 112, 7, 7, 0, NONE, 112, 8, 106, TABLES_BY_VBMI },
		{ 128, 4, 4, 0, NONE, 128, 8, 105, "transposed" },
		{ 256, 4, 4, 0, NONE, 128, 1, 200, "transposed" } } },
	{ "avx512", AVX512 "all else | to 8 | any | transposed |", {
		{ 128, 8, 8, 0, PRE, 128, 4, 200, "transposed" },
		{ 128, 2, 2, 0, NONE, 128, 4, 200, "transposed" },
		{ 128, 1, 8, 0, PRE, 32, 8, 1, "transposed" },
		{ 128, 8, 8, K10, PRE, 128, 4, 50, "transposed" },
		{ 128, 8, 8, K10, NONE, 128, 1, 200, "transposed" },
		{ 128, 8, 8, V10, PRE, 128, 8, 50, "transposed" } } },
	{ "avx2", AVX2 "8 bits, keys not turned, 4 channels and more per group, K and V | to 8 | "
	  "from 16 coded | tables |", {
		{ 128, 4, 16, 0, NONE, 128, 8, 16, "tables" },
		{ 128, 8, 8, 1, NONE, 128, 1, 16, "tables" },
		{ 128, 8, 8, 0, NONE, 128, 4, 15, "tile" },
		{ 128, 2, 8, 0, NONE, 128, 4, 16, "tile" },
		{ 128, 8, 2, 0, NONE, 128, 4, 16, "tile" },
		{ 128, 8, 8, 0, NONE, 128, 9, 16, "tile" } } },
	{ "avx2", AVX2 "8 bits, keys turned, 4 or 8 channels per group, channels a multiple of 16, "
	  "turned ones of 32 | to 8 | from 16 coded | integers |", {
		{ 128, 8, 8, 0, PRE, 128, 4, 16, "integers" },
		{ 128, 4, 16, 1, PRE, 32, 8, 30, "integers" },
		{ 128, 16, 8, 0, PRE, 128, 4, 16, "tile" },
		{ 128, 8, 8, 0, PRE, 48, 4, 16, "tile" },
		{ 120, 8, 8, 0, PRE, 64, 4, 16, "tile" },
		{ 128, 8, 8, 0, PRE, 128, 4, 15, "tile" } } },
	{ "avx2", AVX2 "all else | any | any | tile |", {
		{ 128, 2, 2, 0, PRE, 128, 4, 100, "tile" },
		{ 128, 8, 8, 0, PRE, 128, 16, 100, "tile" },
		{ 128, 8, 8, K10, PRE, 128, 4, 100, "tile" },
		{ 128, 8, 8, V10, NONE, 128, 4, 100, "tile" },
		{ 128, 0, 0, 0, NONE, 128, 1, 100, "tile" } } },
	{ "neon", NEON "8-bit centroids, K and V | to 8 | any | transposed |", {
		{ 128, 8, 2, 0, PRE, 128, 8, 1, "transposed" },
		{ 63, 1, 1, 0, NONE, 0, 1, 100, "transposed" } } },
	{ "neon", NEON "all else | any | any | tile |", {
		{ 128, 8, 8, 0, PRE, 128, 9, 50, "tile" },
		{ 128, 8, 8, 1, NONE, 128, 4, 50, "tile" },
		{ 128, 8, 0, 0, NONE, 128, 4, 50, "tile" } } },
	{ "portable", PORTABLE "8 bits, 2 channels and more per group, K and V; of turned keys "
	  "channels and those per group a multiple of 4, turned ones of 8 | "
	  "to 8 | from 8 coded | tables |", {
		{ 128, 8, 8, 0, NONE, 128, 4, 8, "tables" },
		{ 128, 2, 16, 1, NONE, 128, 8, 8, "tables" },
		{ 128, 8, 4, 0, PRE, 128, 1, 8, "tables" },
		{ 63, 3, 3, 0, NONE, 0, 1, 8, "tables" },
		{ 128, 4, 2, 0, PRE, 40, 5, 100, "tables" } } },
	{ "portable", PORTABLE "all else | any | any | tile |", {
		{ 128, 8, 8, 0, PRE, 128, 4, 7, "tile" },
		{ 128, 8, 8, 0, NONE, 128, 9, 100, "tile" },
		{ 128, 1, 8, 0, NONE, 128, 4, 100, "tile" },
		{ 128, 8, 8, K10, NONE, 128, 4, 100, "tile" },
		{ 128, 2, 2, 0, PRE, 128, 4, 100, "tile" },
		{ 128, 8, 8, 0, PRE, 36, 4, 100, "tile" },
		{ 128, 0, 0, 0, NONE, 128, 1, 100, "tile" } } },
};

/* Compiled in or not, usable or not: only asked, not run. */
static const struct cqk_ops *ops_of(const char *name)
{
	unsigned int i;

	for (i = 0; cqk_nth(i); i++)
		if (!strcmp(cqk_nth(i)->name, name))
			return cqk_nth(i);
	return NULL;
}

static void check_call(const struct cqk_ops *ops, const struct call *c, const char *way)
{
	struct scene_opts o = {
		.toy = { .n_layers = 1, .n_heads = c->vectors, .n_kv_heads = 1, .d = c->d,
			 .keys = c->keys, .rope_dim = c->rope_dim, .ck = c->ck, .cv = c->cv,
			 .bk = c->kind == K10 ? 10 : 8, .bv = c->kind == V10 ? 10 : 8,
			 .i8 = c->kind != 1 },
		.shared = c->pages,
	};
	struct scene *s = scene_new(&o);
	const char *got = ops->path(&s->a);

	if (strcmp(got, way))
		FAIL("%s: d %u c %u/%u kind %u keys %u/%u vectors %u pages %u: %s, want %s",
		     ops->name, c->d, c->ck, c->cv, c->kind, c->keys, c->rope_dim,
		     c->vectors, c->pages, got, way);
	scene_free(s);
}

/* @name: of the implementation that is to follow the rules of @impl. */
static void check_rules(const char *impl, const char *name)
{
	const char *by_vbmi = strcmp(impl, name) ? "transposed" : "tables";
	const struct cqk_ops *ops = ops_of(name);
	size_t i, k;

	if (!ops)
		SKIP("%s is not compiled in", name);
	for (i = 0; i < ARRAY_SIZE(rules); i++)
		for (k = 0; !strcmp(rules[i].impl, impl) && rules[i].calls[k].d; k++) {
			const struct call *c = &rules[i].calls[k];

			check_call(ops, c, strcmp(c->way, TABLES_BY_VBMI) ? c->way : by_vbmi);
		}
}

#ifdef __aarch64__
TEST(ways_of_neon)
{
	check_rules("neon", "neon");
}
#else
TEST(ways_of_avx512)
{
	check_rules("avx512", "avx512");
}

TEST(ways_of_avx512_without_vbmi)
{
	check_rules("avx512", "avx512vnni");
	check_rules("avx512", "avx512bw");
}

TEST(ways_of_avx2)
{
	check_rules("avx2", "avx2");
}
#endif

TEST(ways_of_portable_code)
{
	check_rules("portable", "portable");
}

/* Lines of the document that begin like a rule. */
static bool is_rule(const char *line)
{
	static const char *const heads[] = { AVX512, AVX2, NEON, PORTABLE };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(heads); i++)
		if (!strncmp(line, heads[i], strlen(heads[i])))
			return true;
	return false;
}

TEST(the_document_has_these_rules_in_this_order)
{
	const char *top = getenv("TOP");
	char path[512], line[512];
	bool inside = false;
	size_t n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/Documentation/performance.md", top ? top : ".");
	f = fopen(path, "re");
	if (!f)
		FAIL("%s: %s; set TOP to the source's folder", path, strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		if (line[0] == '#')
			inside = strstr(line, "Which way a call takes");
		if (!inside || !is_rule(line))
			continue;
		line[strcspn(line, "\n")] = 0;
		if (n == ARRAY_SIZE(rules) || strcmp(line, rules[n].line))
			FAIL("line %zu of the table is \"%s\"", n + 1, line);
		n++;
	}
	fclose(f);
	ASSERT_EQ(n, ARRAY_SIZE(rules));
}
