/* SPDX-License-Identifier: MIT */
/* The figures of cqd as text for Prometheus, in pieces. */
#ifndef CQD_METRICS_H
#define CQD_METRICS_H

#include <stddef.h>
#include <stdint.h>

#define CQD_METRICS_MIN 8192	/* room that a piece needs */

struct cqd_server;

/*
 * Next piece from *@cursor (0 at first) into @buf of @size bytes, at least
 * CQD_METRICS_MIN; whole lines. Returns its length, 0 at the end.
 */
size_t cqd_metrics_text(struct cqd_server *srv, uint64_t *cursor, char *buf, size_t size);

#endif /* CQD_METRICS_H */
