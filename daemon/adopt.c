// SPDX-License-Identifier: MIT
#include "daemon/store_priv.h"
int cqd_adopt(struct cqd_store *st, const struct cqd_store_opts *opts,
	      struct cq_err *err)
{
	int ret = cqd_index_create(&st->ix, opts, err);

	if (ret)
		return ret;
	return cqd_store_arrays(st);
}
