// SPDX-License-Identifier: MIT
/*
 * Legacy IPC handles: of a whole block of cuMemAlloc(), for other processes
 * while its owner lives. Who has opened one keeps it.
 */
#include <cstdio>
#include <unistd.h>

#include "tests/emu/fake.hpp"

namespace fake {

struct ticket {
	char magic[4];
	int32_t pid;
	uint64_t born;		/* of the process: pids come again */
	char name[48];
};
static_assert(sizeof(struct ticket) <= sizeof(struct cqcu_ipc_handle), "fits");

static const char MAGIC[4] = { 'c', 'q', 'i', '1' };

/* Field 22 of /proc/PID/stat; 0 if there is no such process, or only its zombie. */
static uint64_t born(int pid)
{
	char path[64], text[1024], state = 0;
	unsigned long long start = 0;
	const char *p;
	size_t n;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	f = fopen(path, "re");
	if (!f)
		return 0;
	n = fread(text, 1, sizeof(text) - 1, f);
	fclose(f);
	text[n] = '\0';
	p = strrchr(text, ')');
	if (!p || sscanf(p + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d "
			 "%*d %*d %*d %*d %llu", &state, &start) != 2)
		return 0;
	return state == 'Z' || state == 'X' ? 0 : start;
}

namespace calls {

int cuIpcGetMemHandle(struct cqcu_ipc_handle *h, cqcu_ptr p)
{
	std::lock_guard<std::mutex> hold(space_lock);
	struct region *r = space_find(p);
	struct ticket t = {};

	if (!h || !r || r->kind != BLOCK || r->phys->name.size() >= sizeof(t.name))
		return CQCU_ERROR_INVALID_VALUE;
	memcpy(t.magic, MAGIC, sizeof(MAGIC));
	t.pid = getpid();
	t.born = born(t.pid);
	snprintf(t.name, sizeof(t.name), "%s", r->phys->name.c_str());
	memset(h, 0, sizeof(*h));
	memcpy(h, &t, sizeof(t));
	return CQCU_SUCCESS;
}

/* Opened before by this process: the same address again. space_lock is held. */
static bool open_again(const char *name, cqcu_ptr *p)
{
	for (auto &i : regions)
		if (i.second.kind == OPENED && i.second.phys->name == name) {
			i.second.refs++;
			*p = i.first;
			return true;
		}
	return false;
}

static int map_opened(const phys_ptr &phys, cqcu_ptr *p)
{
	struct region r = {};
	cqcu_ptr where;
	int res;

	r.phys = phys;
	r.size = phys->size - phys->pad;
	r.kind = OPENED;
	r.dev = phys->dev;
	r.rights = CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE;
	r.offset = phys->pad;
	r.refs = 1;
	where = space_reserve(phys->size, PAGE, PAGE);
	if (!where)
		return CQCU_ERROR_OUT_OF_MEMORY;
	res = space_map(&r, where);
	if (!res)
		*p = r.base;
	phys_close(phys.get());
	return res;
}

int cuIpcOpenMemHandle(cqcu_ptr *p, struct cqcu_ipc_handle h, unsigned int flags)
{
	struct ticket t;
	phys_ptr phys;
	int res;

	memcpy(&t, &h, sizeof(t));
	if (!p || flags != CQCU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS ||
	    memcmp(t.magic, MAGIC, sizeof(MAGIC)) || !memchr(t.name, 0, sizeof(t.name)))
		return CQCU_ERROR_INVALID_VALUE;
	if (t.pid == getpid())
		return CQCU_ERROR_INVALID_CONTEXT;
	if (t.pid <= 0 || !t.born || born(t.pid) != t.born)
		return CQCU_ERROR_MAP_FAILED;
	std::lock_guard<std::mutex> hold(space_lock);
	if (open_again(t.name, p))
		return CQCU_SUCCESS;
	res = phys_open_named(&phys, t.name);
	return res ? res : map_opened(phys, p);
}

int cuIpcCloseMemHandle(cqcu_ptr p)
{
	phys_ptr last;
	int res = sync_all(current());
	std::lock_guard<std::mutex> hold(space_lock);
	auto i = regions.find(p);

	if (i == regions.end() || i->second.kind != OPENED)
		return CQCU_ERROR_INVALID_VALUE;
	if (--i->second.refs)
		return res;
	struct region r = i->second;

	last = r.phys;
	space_unmap(&r);
	space_retire(r.map - PAGE, r.map_size + 2 * PAGE);
	return res;
}

} /* namespace calls */
} /* namespace fake */
