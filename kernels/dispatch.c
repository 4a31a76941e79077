// SPDX-License-Identifier: MIT
/*
 * Which implementation runs. The table is sorted by priority; the portable
 * one ends it and always works. Callers pass the value of CQ_KERNELS=.
 */
#include <string.h>
#include "kernels/attn.h"

static const struct cqk_ops *const table[] = {
#ifdef __x86_64__
	&cqk_avx512,
	&cqk_avx512vnni,
	&cqk_avx512bw,
	&cqk_avx2,
#endif
#ifdef __aarch64__
	&cqk_neon,
#endif
	&cqk_portable,
};

const struct cqk_ops *cqk_nth(unsigned int i)
{
	return i < ARRAY_SIZE(table) ? table[i] : NULL;
}

const struct cqk_ops *cqk_select(const char *want)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(table); i++) {
		if (want && strcmp(want, table[i]->name))
			continue;
		if (table[i]->usable())
			return table[i];
	}
	return NULL;
}
