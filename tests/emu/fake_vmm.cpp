// SPDX-License-Identifier: MIT
/*
 * Virtual memory management: memory by handle, shared by descriptor, mapped
 * where its owner says and with the rights that he says.
 */
#include <cstdio>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/emu/fake.hpp"

namespace fake {

struct handle {
	phys_ptr phys;
	unsigned int refs;
};

/* Handles are numbers, so that a wrong one is found out. Under space_lock. */
static auto &handles = *new std::map<cqcu_mem, struct handle>;
static cqcu_mem next_handle = 0x1000;
static auto &reserved = *new std::map<cqcu_ptr, size_t>;

static cqcu_mem handle_new(const phys_ptr &p)
{
	cqcu_mem h = next_handle;

	next_handle += 16;
	handles[h] = { p, 1 };
	return h;
}

/* An open handle of the same memory counts once more, as cuMemRelease() expects. */
static phys_ptr handle_get(cqcu_mem h)
{
	std::lock_guard<std::mutex> hold(space_lock);
	auto i = handles.find(h);

	return i == handles.end() ? nullptr : i->second.phys;
}

static int check_prop(const struct cqcu_mem_prop *prop, int *dev)
{
	if (!prop || prop->type != CQCU_MEM_ALLOCATION_TYPE_PINNED || prop->windows ||
	    prop->location.type != CQCU_MEM_LOCATION_TYPE_DEVICE || prop->flags.usage)
		return CQCU_ERROR_INVALID_VALUE;
	if (prop->handle_types & ~CQCU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CQCU_ERROR_NOT_SUPPORTED;
	*dev = device_of(prop->location.id);
	return *dev < 0 ? CQCU_ERROR_INVALID_DEVICE : CQCU_SUCCESS;
}

/*
 * CQ_EMU_FD_POLL: an end of a socket whose other end is gone with a byte left
 * unread polls as POLLERR|POLLHUP; the memory's descriptor waits in it.
 */
static int wrap_fd(int fd)
{
	char byte = 0, room[CMSG_SPACE(sizeof(int))] = {};
	struct iovec io = { &byte, 1 };
	struct msghdr msg = {};
	struct cmsghdr *c;
	int s[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s) < 0)
		return -1;
	msg.msg_iov = &io;
	msg.msg_iovlen = 1;
	msg.msg_control = room;
	msg.msg_controllen = sizeof(room);
	c = CMSG_FIRSTHDR(&msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	if (sendmsg(s[1], &msg, 0) != 1 || write(s[0], &byte, 1) != 1) {
		close(s[0]);
		s[0] = -1;
	}
	close(s[1]);
	return s[0];
}

static int unwrap_fd(int sock)
{
	char byte, room[CMSG_SPACE(sizeof(int))];
	struct iovec io = { &byte, 1 };
	struct msghdr msg = {};
	struct cmsghdr *c;
	int fd = -1;

	msg.msg_iov = &io;
	msg.msg_iovlen = 1;
	msg.msg_control = room;
	msg.msg_controllen = sizeof(room);
	if (recvmsg(sock, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != 1)
		return -1;
	c = CMSG_FIRSTHDR(&msg);
	if (c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}

/* The reservation that has all of [p, p + n), or the end of the map. */
static bool is_reserved(cqcu_ptr p, size_t n)
{
	auto i = reserved.upper_bound(p);

	if (i == reserved.begin() || n > MAX_SIZE)
		return false;
	--i;
	return p + n <= i->first + i->second;
}

static bool any_mapped(cqcu_ptr p, size_t n)
{
	auto next = regions.lower_bound(p);

	return space_find(p) || (next != regions.end() && next->first < p + n);
}

/* The mappings that make up [p, p + n) exactly, one after another; else none. */
static std::vector<struct region *> mapped(cqcu_ptr p, size_t n)
{
	std::vector<struct region *> out;

	while (n) {
		auto i = regions.find(p);

		if (i == regions.end() || i->second.kind != MAPPED || i->second.size > n)
			return {};
		out.push_back(&i->second);
		p += i->second.size;
		n -= i->second.size;
	}
	return out;
}

namespace calls {

int cuMemGetAllocationGranularity(size_t *size, const struct cqcu_mem_prop *prop, int option)
{
	int dev, res = check_prop(prop, &dev);

	if (!size || option < 0 || option > 1)
		return CQCU_ERROR_INVALID_VALUE;
	if (res)
		return res;
	*size = GRAN;
	return CQCU_SUCCESS;
}

int cuMemCreate(cqcu_mem *h, size_t size, const struct cqcu_mem_prop *prop,
		unsigned long long flags)
{
	int dev, res = check_prop(prop, &dev);
	phys_ptr p;

	if (!h || flags || !size || size % GRAN)
		return CQCU_ERROR_INVALID_VALUE;
	if (res)
		return res;
	if (size > MAX_SIZE)
		return CQCU_ERROR_OUT_OF_MEMORY;
	res = phys_create(&p, dev, size, 0, prop->handle_types != 0);
	if (res)
		return res;
	std::lock_guard<std::mutex> hold(space_lock);
	*h = handle_new(p);
	return CQCU_SUCCESS;
}

int cuMemRelease(cqcu_mem h)
{
	phys_ptr last;	/* let go outside the lock */
	std::lock_guard<std::mutex> hold(space_lock);
	auto i = handles.find(h);

	if (i == handles.end())
		return CQCU_ERROR_INVALID_VALUE;
	if (--i->second.refs == 0) {
		last = i->second.phys;
		handles.erase(i);
	}
	return CQCU_SUCCESS;
}

int cuMemRetainAllocationHandle(cqcu_mem *h, void *addr)
{
	std::lock_guard<std::mutex> hold(space_lock);
	struct region *r = space_find(reinterpret_cast<cqcu_ptr>(addr));

	if (!h || !r || r->kind != MAPPED)
		return CQCU_ERROR_INVALID_VALUE;
	for (auto &i : handles)
		if (i.second.phys == r->phys) {
			i.second.refs++;
			*h = i.first;
			return CQCU_SUCCESS;
		}
	*h = handle_new(r->phys);
	return CQCU_SUCCESS;
}

int cuMemGetAllocationPropertiesFromHandle(struct cqcu_mem_prop *prop, cqcu_mem h)
{
	phys_ptr p = handle_get(h);

	if (!prop || !p)
		return CQCU_ERROR_INVALID_VALUE;
	*prop = {};
	prop->type = CQCU_MEM_ALLOCATION_TYPE_PINNED;
	prop->handle_types = p->shareable ? CQCU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR : 0;
	prop->location.type = CQCU_MEM_LOCATION_TYPE_DEVICE;
	prop->location.id = ordinal_of(p->dev);
	return CQCU_SUCCESS;
}

int cuMemExportToShareableHandle(void *handle, cqcu_mem h, int type, unsigned long long flags)
{
	phys_ptr p = handle_get(h);
	int fd;

	if (!handle || !p || flags)
		return CQCU_ERROR_INVALID_VALUE;
	if (type != CQCU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CQCU_ERROR_NOT_SUPPORTED;
	if (!p->shareable)
		return CQCU_ERROR_INVALID_VALUE;
	fd = knobs.fd_poll ? wrap_fd(p->fd) : fcntl(p->fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return CQCU_ERROR_OPERATING_SYSTEM;
	memcpy(handle, &fd, sizeof(fd));
	return CQCU_SUCCESS;
}

int cuMemImportFromShareableHandle(cqcu_mem *h, void *handle, int type)
{
	int fd = (int)reinterpret_cast<intptr_t>(handle), res;
	struct stat st;
	phys_ptr p;

	if (!h)
		return CQCU_ERROR_INVALID_VALUE;
	if (type != CQCU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CQCU_ERROR_NOT_SUPPORTED;
	if (fd < 0 || fstat(fd, &st) < 0)
		return CQCU_ERROR_INVALID_VALUE;
	fd = S_ISSOCK(st.st_mode) ? unwrap_fd(fd) : fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return CQCU_ERROR_INVALID_VALUE;
	res = phys_open(&p, fd);
	if (res)
		return res;
	if (!p->shareable || p->dev >= knobs.devices)
		return CQCU_ERROR_INVALID_VALUE;
	std::lock_guard<std::mutex> hold(space_lock);
	*h = handle_new(p);
	return CQCU_SUCCESS;
}

int cuMemAddressReserve(cqcu_ptr *p, size_t size, size_t align, cqcu_ptr,
			unsigned long long flags)
{
	cqcu_ptr got;

	if (!p || !size || size % GRAN || flags || (align & (align - 1)) || align > MAX_SIZE)
		return CQCU_ERROR_INVALID_VALUE;
	if (size > MAX_SIZE)
		return CQCU_ERROR_OUT_OF_MEMORY;
	std::lock_guard<std::mutex> hold(space_lock);
	got = space_reserve(size, std::max(align, GRAN), GRAN);
	if (!got)
		return CQCU_ERROR_OUT_OF_MEMORY;
	reserved[got] = size;
	*p = got;
	return CQCU_SUCCESS;
}

int cuMemAddressFree(cqcu_ptr p, size_t size)
{
	std::lock_guard<std::mutex> hold(space_lock);
	auto i = reserved.find(p);

	if (i == reserved.end() || i->second != size || any_mapped(p, size))
		return CQCU_ERROR_INVALID_VALUE;
	reserved.erase(i);
	space_retire(p - GRAN, size + 2 * GRAN);
	return CQCU_SUCCESS;
}

int cuMemMap(cqcu_ptr p, size_t size, size_t offset, cqcu_mem h, unsigned long long flags)
{
	struct region r = {};

	r.phys = handle_get(h);
	if (flags || !size || size % GRAN || p % GRAN || offset % GRAN || !r.phys ||
	    offset > r.phys->size || size > r.phys->size - offset)
		return CQCU_ERROR_INVALID_VALUE;
	std::lock_guard<std::mutex> hold(space_lock);
	if (!is_reserved(p, size))
		return CQCU_ERROR_INVALID_VALUE;
	if (any_mapped(p, size))
		return CQCU_ERROR_ALREADY_MAPPED;
	r.size = size;
	r.kind = MAPPED;
	r.dev = r.phys->dev;
	r.rights = CQCU_MEM_ACCESS_FLAGS_PROT_NONE;
	r.offset = offset;
	return space_map(&r, p);
}

/* A real one does not wait either: whoever still uses it is at fault. */
int cuMemUnmap(cqcu_ptr p, size_t size)
{
	std::vector<phys_ptr> last;
	std::lock_guard<std::mutex> hold(space_lock);
	std::vector<struct region *> all = mapped(p, size);

	if (all.empty())
		return CQCU_ERROR_INVALID_VALUE;
	for (struct region *r : all) {
		struct region copy = *r;

		last.push_back(copy.phys);
		space_unmap(&copy);
	}
	return CQCU_SUCCESS;
}

int cuMemSetAccess(cqcu_ptr p, size_t size, const struct cqcu_access *desc, size_t n)
{
	std::lock_guard<std::mutex> hold(space_lock);
	std::vector<struct region *> all = mapped(p, size);

	if (!desc || !n || n > MAX_DEVICES || all.empty())
		return CQCU_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < n; i++)
		if (desc[i].location.type != CQCU_MEM_LOCATION_TYPE_DEVICE ||
		    device_of(desc[i].location.id) < 0 ||
		    (desc[i].flags != CQCU_MEM_ACCESS_FLAGS_PROT_NONE &&
		     desc[i].flags != CQCU_MEM_ACCESS_FLAGS_PROT_READ &&
		     desc[i].flags != CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE))
			return CQCU_ERROR_INVALID_VALUE;
	for (struct region *r : all)
		for (size_t i = 0; i < n; i++)
			if (space_rights(r, desc[i].flags))
				return CQCU_ERROR_INVALID_VALUE;
	return CQCU_SUCCESS;
}

int cuMemGetAccess(unsigned long long *flags, const struct cqcu_location *location, cqcu_ptr p)
{
	std::lock_guard<std::mutex> hold(space_lock);
	struct region *r = space_find(p);

	if (!flags || !location || location->type != CQCU_MEM_LOCATION_TYPE_DEVICE ||
	    device_of(location->id) < 0 || !r || r->kind != MAPPED)
		return CQCU_ERROR_INVALID_VALUE;
	*flags = (unsigned long long)r->rights;
	return CQCU_SUCCESS;
}

} /* namespace calls */
} /* namespace fake */
