// SPDX-License-Identifier: MIT
/* Instructions of attention per token and kv head, a JSON object per line. */
#include "tests/bench/instructions.h"

static void print_case(size_t i)
{
	const struct count_case *c = &count_cases[i];
	double n = cqk_select(c->impl) ? count_grind(i, "") : 0;

	if (n <= 0) {
		fprintf(stderr, "%s: no valgrind, or not for this processor\n", c->impl);
		return;
	}
	printf("{\"bench\": \"instructions\", \"impl\": \"%s\", \"config\": \"%s\", "
	       "\"keys\": \"%s\", \"context\": %u, \"per_token\": %.1f}\n",
	       c->impl, !c->c ? "kfp16-vfp16" : c->c == 8 ? "k8c8b-v8c8b" :
	       c->c == 4 ? "k4c8b-v4c8b" : "k2c8b-v2c8b",
	       c->keys == CQK_KEYS_NONE ? "none" : "pre-rope", count_pages(c) * 64, n);
}

static void print_loop(const struct count_loop *l, const char *impl, uint32_t length)
{
	if (length)
		printf("{\"bench\": \"instructions\", \"impl\": \"%s\", \"loop\": \"%s\", "
		       "\"turn\": \"%s\", \"length\": %u, \"per_token\": %.1f}\n",
		       impl, l->name, l->what, length, length * l->turns);
}

int main(void)
{
	uint32_t loops[ARRAY_SIZE(count_loops)][COUNT_ROWS];
	size_t i, row;

	if (count_wanted())
		return count_run(count_wanted()) ? 0 : 1;
	for (i = 0; i < ARRAY_SIZE(count_cases); i++)
		print_case(i);
	count_disassemble(loops);
	for (i = 0; i < ARRAY_SIZE(count_loops); i++)
		for (row = 0; row < COUNT_ROWS; row++)
			print_loop(&count_loops[i], count_rows[row], loops[i][row]);
	return 0;
}
