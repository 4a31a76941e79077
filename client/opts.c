// SPDX-License-Identifier: MIT
/* Structs that begin with their size, and the text of the last failure. */
#include <errno.h>
#include <string.h>
#include "client/internal.h"

static _Thread_local struct cq_err last_error;

/**
 * cqc_err() - text of this thread's last failure
 *
 * Return: where it is.
 */
struct cq_err *cqc_err(void)
{
	return &last_error;
}

CQ_API const char *cq_last_error(void)
{
	return last_error.text;
}

CQ_API const char *cq_version(void)
{
	return CQ_VERSION;
}

/**
 * cqc_opts_in() - copy a caller's options
 * @dst:  [@size], filled with zeros where the caller's struct is shorter
 * @size: of the struct this library knows
 * @src:  the caller's, or NULL for all defaults
 * @what: name for the text
 *
 * Return: 0; -EINVAL no size; -E2BIG longer than known, and the tail is used.
 */
int cqc_opts_in(void *dst, size_t size, const void *src, const char *what)
{
	const uint8_t *p = src;
	size_t sz, i;

	memset(dst, 0, size);
	if (!src)
		return 0;
	memcpy(&sz, src, sizeof(sz));
	if (sz < sizeof(sz) || sz > 4096)
		return cqc_fail(-EINVAL, "%s: sz is %zu; set it to sizeof the struct", what, sz);
	for (i = size; i < sz; i++)
		if (p[i])
			return cqc_fail(-E2BIG, "%s: byte %zu is set, but this library (%s) "
						"knows only %zu; use a newer libcq",
					what, i, CQ_VERSION, size);
	memcpy(dst, src, MIN(sz, size));
	return 0;
}

/**
 * cqc_opts_out() - fill a caller's struct
 * @dst:  begins with its size, which is kept; a longer one gets zeros behind
 * @src:  what to put there, [@size]
 * @size: of the struct this library knows
 * @what: name for the text
 *
 * Return: 0; -EINVAL no size.
 */
int cqc_opts_out(void *dst, const void *src, size_t size, const char *what)
{
	size_t sz;

	if (!dst)
		return cqc_fail(-EINVAL, "%s: NULL", what);
	memcpy(&sz, dst, sizeof(sz));
	if (sz < sizeof(sz) || sz > 4096)
		return cqc_fail(-EINVAL, "%s: sz is %zu; set it to sizeof the struct", what, sz);
	memset((uint8_t *)dst + sizeof(sz), 0, sz - sizeof(sz));
	memcpy((uint8_t *)dst + sizeof(sz), (const uint8_t *)src + sizeof(sz),
	       MIN(sz, size) - sizeof(sz));
	return 0;
}
