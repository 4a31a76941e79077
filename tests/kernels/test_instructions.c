// SPDX-License-Identifier: MIT
/*
 * Attention's loops have not grown: instructions counted, not time. Recorded
 * counts are those of gcc 12; they are to be recorded anew when code changes them
 * for a reason (build/tests/bench/bench_instructions prints them).
 */
#include "tests/harness.h"
#include "tests/bench/instructions.h"

#define GROWTH 1.10	/* more fails */

/* Counts are of one compiler's plain code. */
static void need_plain(void)
{
#if defined(__clang__) || !defined(__GNUC__) || __GNUC__ != 12 ||	\
	!defined(__OPTIMIZE__) || defined(__SANITIZE_ADDRESS__) ||	\
	defined(__SANITIZE_THREAD__)
	SKIP("counts are recorded for gcc 12, optimized, without sanitizers");
#endif
}

/* What runs under callgrind when another test has set CQ_COUNT. */
TEST(a_counted_call_gives_numbers)
{
	const struct count_case *c = count_wanted();

	ASSERT(count_run(c ? c : &count_cases[0]) || !cqk_select("avx2"));
}

static void check_impl(const char *impl)
{
	size_t i;

	need_plain();
	if (!cqk_select(impl))
		SKIP("no %s here", impl);
	if (system("valgrind --version >/dev/null 2>&1"))
		SKIP("no valgrind");
	for (i = 0; i < ARRAY_SIZE(count_cases); i++) {
		const struct count_case *c = &count_cases[i];
		double n;

		if (strcmp(c->impl, impl))
			continue;
		n = count_grind(i, "a_counted_call_gives_numbers");
		if (!(n > 0 && n <= c->expect * GROWTH))
			FAIL("%s, %u channels per group, keys %u: %.1f instructions a "
			     "token, recorded %.1f", impl, c->c, c->keys, n, c->expect);
	}
}

TEST_LIMIT(avx2_has_not_grown, 300)
{
	check_impl("avx2");
}

TEST_LIMIT(portable_code_has_not_grown, 300)
{
	check_impl("portable");
}

TEST_LIMIT(loops_of_avx512_have_not_grown, 60)
{
	uint32_t got[ARRAY_SIZE(count_loops)][COUNT_ROWS];
	size_t i, row;

	need_plain();
#ifndef __x86_64__
	SKIP("not this processor's");
#endif
	count_disassemble(got);
	for (i = 0; i < ARRAY_SIZE(count_loops); i++)
		for (row = 0; row < COUNT_ROWS; row++) {
			const struct count_loop *l = &count_loops[i];

			if (!got[i][row] || got[i][row] > l->expect[row] * GROWTH)
				FAIL("%s of %s (%s): %u instructions a turn, recorded %u",
				     l->name, count_rows[row], l->what, got[i][row],
				     l->expect[row]);
		}
}
