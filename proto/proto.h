/* SPDX-License-Identifier: MIT */
/*
 * Versions, limits and the packed records that travel inside messages.
 */
#ifndef CQP_PROTO_H
#define CQP_PROTO_H

#include <stddef.h>
#include <stdint.h>

#define CQP_VERSION		1
#define CQP_INCOMPAT_KNOWN	0ull	/* incompatible features this build knows */
#define CQP_COMPAT_KNOWN	0ull

#define CQP_MAX_MSG		65536
#define CQP_MAX_FDS		28
#define CQP_MAX_KEYS		1024
#define CQP_MAX_NAME		64	/* models, namespaces, clients */
#define CQP_MAX_EXTRA		1024	/* caller's extra key bytes per page */
#define CQP_DEFAULT_SOCKET	"/run/cq/cqd.sock"
#define CQP_DEFAULT_ADMIN	"/run/cq/admin.sock"

/**
 * struct cqp_page - a sealed page (or sink object) as a client sees it
 * @word:    state word at the time of the answer; any other value later means
 *           that the page is gone
 * @segment: segment id
 * @slot:    slot in the segment
 */
struct cqp_page {
	uint64_t word;
	uint32_t segment;
	uint32_t slot;
};
_Static_assert(sizeof(struct cqp_page) == 16, "frozen");

#endif /* CQP_PROTO_H */
