// SPDX-License-Identifier: MIT
/*
 * Memory of segments on a GPU (sharing = ipc): blocks of a process of their own,
 * cq-holder, which workers open by a legacy handle of 64 bytes. cqd needs no driver for
 * it. The blocks outlive cqd and are gone with the holder.
 */
#include <errno.h>
#include <string.h>
#include "daemon/ipc_link.h"
#include "daemon/mem.h"

#define TRIES 3		/* to reach a holder that is there */

_Static_assert(CQD_HANDLE == CQP_HOLDER_HANDLE, "one kind of handle");

static int ipc_usable(struct cq_err *err)
{
	return 0;	/* probe() says what there is to say */
}

static int ipc_probe(struct cqd_mem_device *dev, struct cq_err *err)
{
	struct cqd_ipc_peer p;
	int ret, tries = 0;

	if (!dev->link)
		return cq_err_set(err, -EINVAL, "backend 'cuda-ipc' is for sections [gpu NAME]");
	/* Pages of the cqd before are lost without the holder's list. */
	do
		ret = cqd_ipc_reach(dev->link, &p, err);
	while ((ret == -ECONNABORTED || ret == -ETIMEDOUT) && ++tries < TRIES);
	if (ret)
		return ret;
	dev->bytes = p.bytes;
	dev->granularity = CQP_HOLDER_GRAIN;
	cqd_ipc_link_set(dev->link, &p);
	return 0;
}

static int attempt(struct cqd_mem *mem, void *arg, struct cq_err *err)
{
	return cqd_ipc_alloc(mem->dev->link, mem->id, mem->bytes, mem->handle, &mem->boot, err);
}

static int ipc_create(struct cqd_mem *mem, struct cq_err *err)
{
	return cqd_mem_patient(mem, attempt, NULL, err);
}

static int ipc_adopt(struct cqd_mem *mem, struct cq_err *err)
{
	struct cqd_ipc_link *l = mem->dev->link;
	const struct cqp_holder_block *b = cqd_ipc_peer_take(&l->peer, mem->id, mem->bytes);

	if (!b)
		return cq_err_set(err, -ENODATA, "the holder has no block %llu of %llu bytes",
				  (unsigned long long)mem->id, (unsigned long long)mem->bytes);
	memcpy(mem->handle, b->handle, sizeof(mem->handle));
	mem->boot = l->peer.boot;
	return 0;
}

static void ipc_discard(struct cqd_mem *mem)
{
	if (mem->boot)
		cqd_ipc_free(mem->dev->link, mem->boot, mem->id);
	mem->boot = 0;
}

/* The block stays with the holder, for the next cqd. */
static void ipc_destroy(struct cqd_mem *mem)
{
	mem->boot = 0;
}

const struct cqd_mem_ops cqd_mem_ipc = {
	.name = "cuda-ipc",
	.kind = CQD_MEM_CUDA_IPC,
	.remote = true,
	.usable = ipc_usable,
	.probe = ipc_probe,
	.create = ipc_create,
	.adopt = ipc_adopt,
	.discard = ipc_discard,
	.destroy = ipc_destroy,
};
