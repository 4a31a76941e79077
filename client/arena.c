// SPDX-License-Identifier: MIT
/* The worker's own memory; see arena.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "client/arena.h"
#include "cq/util.h"

#define ARENA_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define ARENA_MIN_UNITS 4u
#define ARENA_MAX_UNITS (1u << 24)

static int arena_map(struct cqc_arena *a, struct cq_err *err)
{
	int ret;

	a->fd = memfd_create("cq-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (a->fd < 0)
		return cq_err_set(err, -errno, "cannot create the arena: %s", strerror(errno));
	/* Every byte is there before the first token: no SIGBUS, no OOM later. */
	ret = ftruncate(a->fd, (off_t)a->bytes) < 0 ? -errno :
		-posix_fallocate(a->fd, 0, (off_t)a->bytes);
	if (ret)
		return cq_err_set(err, ret == -ENOSPC ? -ENOMEM : ret,
				  "cannot reserve %llu bytes for the arena: %s; ask for less",
				  (unsigned long long)a->bytes, strerror(-ret));
	if (fcntl(a->fd, F_ADD_SEALS, ARENA_SEALS) < 0)
		return cq_err_set(err, -errno, "cannot seal the arena: %s", strerror(errno));
	a->base = mmap(NULL, a->bytes, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_POPULATE, a->fd, 0);
	if (a->base == MAP_FAILED) {
		a->base = NULL;
		return cq_err_set(err, -errno, "cannot map the arena: %s", strerror(errno));
	}
	/* A forked child must not write tokens into its parent's arena. */
	if (madvise(a->base, a->bytes, MADV_DONTFORK) < 0)
		return cq_err_set(err, -errno, "cannot keep the arena from children: %s",
				  strerror(errno));
	return 0;
}

int cqc_arena_plan(struct cqc_arena *a, uint64_t bytes, uint64_t block,
		   uint64_t chunk, struct cq_err *err)
{
	uint32_t i;

	a->fd = -1;
	a->unit = ALIGN_UP(block, 64);
	a->chunk = ALIGN_UP(chunk, 64);
	a->per_unit = (uint32_t)MIN(a->unit / a->chunk, (uint64_t)64);
	if (bytes / a->unit < ARENA_MIN_UNITS || bytes / a->unit > ARENA_MAX_UNITS)
		return cq_err_set(err, -EINVAL,
				  "arena of %llu bytes: need %u to %u blocks of %llu bytes",
				  (unsigned long long)bytes, ARENA_MIN_UNITS,
				  ARENA_MAX_UNITS, (unsigned long long)a->unit);
	a->n_units = (uint32_t)(bytes / a->unit);
	a->bytes = a->unit * a->n_units;
	a->units = calloc(a->n_units, sizeof(*a->units));
	if (!a->units)
		return cq_err_set(err, -ENOMEM, "out of memory for the arena's table");
	for (i = 0; i < a->n_units; i++)
		a->units[i].next = i + 1 < a->n_units ? i + 1 : CQC_NONE;
	a->free_units = 0;
	a->partial = CQC_NONE;
	a->free_bytes = a->bytes;
	return 0;
}

int cqc_arena_init(struct cqc_arena *a, uint64_t bytes, uint64_t block,
		   uint64_t chunk, struct cq_err *err)
{
	int ret = cqc_arena_plan(a, bytes, block, chunk, err);

	if (!ret)
		ret = arena_map(a, err);
	if (ret)
		cqc_arena_fini(a);
	return ret;
}

/**
 * cqc_arena_fini() - give everything back
 * @a: arena, or zeroed
 */
void cqc_arena_fini(struct cqc_arena *a)
{
	if (a->units && a->fd >= 0) {
		if (a->base)
			munmap(a->base, a->bytes);
		close(a->fd);
	}
	free(a->units);
	memset(a, 0, sizeof(*a));
	a->fd = -1;
}

static uint32_t unit_take(struct cqc_arena *a)
{
	uint32_t u = a->free_units;

	if (u == CQC_NONE)
		return CQC_NONE;
	a->free_units = a->units[u].next;
	return u;
}

static void unit_give(struct cqc_arena *a, uint32_t u)
{
	a->units[u].cut = 0;
	a->units[u].next = a->free_units;
	a->free_units = u;
}

/**
 * cqc_block_new() - an fp16 block
 * @a: arena
 *
 * Return: its number, one reference; CQC_NONE: full.
 */
uint32_t cqc_block_new(struct cqc_arena *a)
{
	uint32_t u = unit_take(a);

	if (u == CQC_NONE)
		return CQC_NONE;
	a->units[u].refs = 1;
	a->free_bytes -= a->unit;
	return u;
}

/**
 * cqc_block_get() - hold a block once more
 * @a:     arena
 * @block: held already
 */
void cqc_block_get(struct cqc_arena *a, uint32_t block)
{
	a->units[block].refs++;
}

/**
 * cqc_block_put() - let go of a block
 * @a:     arena
 * @block: free after its last holder
 */
void cqc_block_put(struct cqc_arena *a, uint32_t block)
{
	if (--a->units[block].refs)
		return;
	a->free_bytes += a->unit;
	unit_give(a, block);
}

static void partial_add(struct cqc_arena *a, uint32_t u)
{
	a->units[u].prev = CQC_NONE;
	a->units[u].next = a->partial;
	if (a->partial != CQC_NONE)
		a->units[a->partial].prev = u;
	a->partial = u;
}

static void partial_del(struct cqc_arena *a, uint32_t u)
{
	struct cqc_unit *unit = &a->units[u];

	if (unit->prev != CQC_NONE)
		a->units[unit->prev].next = unit->next;
	else
		a->partial = unit->next;
	if (unit->next != CQC_NONE)
		a->units[unit->next].prev = unit->prev;
}

/**
 * cqc_chunk_new() - a chunk for codes or sinks
 * @a: arena
 *
 * Return: its number; CQC_NONE: full.
 */
uint32_t cqc_chunk_new(struct cqc_arena *a)
{
	uint32_t u = a->partial, bit;
	struct cqc_unit *unit;

	if (u == CQC_NONE) {
		u = unit_take(a);
		if (u == CQC_NONE)
			return CQC_NONE;
		unit = &a->units[u];
		unit->cut = 1;
		unit->refs = 0;
		unit->free = a->per_unit == 64 ? ~0ull : (1ull << a->per_unit) - 1;
		partial_add(a, u);
	}
	unit = &a->units[u];
	bit = (uint32_t)__builtin_ctzll(unit->free);
	unit->free &= unit->free - 1;
	unit->refs++;
	if (!unit->free)
		partial_del(a, u);
	a->free_bytes -= a->chunk;
	return u * a->per_unit + bit;
}

/**
 * cqc_chunk_free() - give a chunk back
 * @a:     arena
 * @chunk: as given by cqc_chunk_new()
 */
void cqc_chunk_free(struct cqc_arena *a, uint32_t chunk)
{
	uint32_t u = chunk / a->per_unit;
	struct cqc_unit *unit = &a->units[u];

	if (!unit->free)
		partial_add(a, u);
	unit->free |= 1ull << chunk % a->per_unit;
	a->free_bytes += a->chunk;
	if (--unit->refs)
		return;
	partial_del(a, u);
	unit_give(a, u);
}
