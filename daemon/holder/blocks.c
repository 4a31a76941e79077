// SPDX-License-Identifier: MIT
/* The table of blocks, in the order of their numbers. */
#include <string.h>
#include "daemon/holder/holder.h"

/**
 * ch_blocks_from() - where a number would be
 * @t:      table
 * @number: any
 *
 * Return: place of the first block of that number or above, up to t->n.
 */
unsigned int ch_blocks_from(const struct ch_blocks *t, uint64_t number)
{
	unsigned int lo = 0, hi = t->n, mid;

	while (lo < hi) {
		mid = (lo + hi) / 2;
		if (t->block[mid].b.block < number)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/**
 * ch_blocks_find() - block by number
 * @t:      table
 * @number: any
 *
 * Return: the block, until the table changes; NULL if there is none.
 */
struct ch_block *ch_blocks_find(struct ch_blocks *t, uint64_t number)
{
	unsigned int i = ch_blocks_from(t, number);

	return i < t->n && t->block[i].b.block == number ? &t->block[i] : NULL;
}

/**
 * ch_blocks_add() - one more
 * @t: table that is not full
 * @b: copied; its number is in no other
 */
void ch_blocks_add(struct ch_blocks *t, const struct ch_block *b)
{
	unsigned int i = ch_blocks_from(t, b->b.block);

	memmove(&t->block[i + 1], &t->block[i], (t->n - i) * sizeof(*b));
	t->block[i] = *b;
	t->n++;
}

/**
 * ch_blocks_remove() - one less
 * @t: table
 * @b: in it
 */
void ch_blocks_remove(struct ch_blocks *t, struct ch_block *b)
{
	t->n--;
	memmove(b, b + 1, (size_t)(&t->block[t->n] - b) * sizeof(*b));
}

/**
 * ch_blocks_bytes() - how much it is
 * @t: table
 *
 * Return: bytes of all blocks.
 */
uint64_t ch_blocks_bytes(const struct ch_blocks *t)
{
	uint64_t bytes = 0;
	unsigned int i;

	for (i = 0; i < t->n; i++)
		bytes += t->block[i].b.bytes;
	return bytes;
}
