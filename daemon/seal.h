/* SPDX-License-Identifier: MIT */
/* The machine of a seal (daemon/seal.c), for those that start and end one. */
#ifndef CQD_SEAL_H
#define CQD_SEAL_H

#include "daemon/store_priv.h"

/* Goes on with a seal that is new, or waited for a page; it may be gone then. */
void cqd_seal_step(struct cqd_seal_op *op);
/* Undoes it; @ret and @op->err say why. */
void cqd_seal_fail(struct cqd_seal_op *op, int ret);

#endif /* CQD_SEAL_H */
