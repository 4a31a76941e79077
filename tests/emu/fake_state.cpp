// SPDX-License-Identifier: MIT
/*
 * Device memory: files in shared memory, one for each allocation, in one
 * folder for all processes of a user. Each is opened once, by who creates it,
 * and holds a shared flock(). Duplicates of the descriptor, passed to whoever,
 * and mappings all refer to that one open file, so the kernel drops the lock
 * when the last of them is gone, however their owners died: a file that can
 * be locked is free memory. What a device has in use is what cannot be.
 *
 * The last page of a file says what it is; mappings leave it out.
 */
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "tests/emu/fake.hpp"

namespace fake {

static const char MAGIC[8] = { 'c', 'q', 'f', 'a', 'k', 'e', '0', '1' };

struct trailer {
	char magic[8];
	uint32_t dev, shareable;
	uint64_t size, pad;
	char name[96];
};

static std::atomic<unsigned int> serial;

static bool roomy(const char *path)
{
	struct statvfs st;

	return path && !statvfs(path, &st) && (st.f_flag & ST_RDONLY) == 0 &&
	       (uint64_t)st.f_blocks * st.f_frsize >= (uint64_t)1 << 30;
}

/*
 * The same for all processes: sizes of file systems decide, not what is free.
 * Opened each time, so that no descriptor is left for a test to wonder about.
 */
static int open_folder()
{
	const char *places[] = { "/dev/shm", getenv("XDG_RUNTIME_DIR"), "/tmp" };
	char path[512];
	struct stat st;
	int fd;

	for (const char *place : places) {
		if (!roomy(place))
			continue;
		snprintf(path, sizeof(path), "%s/cq-emu-%u", place, getuid());
		if (mkdir(path, 0700) < 0 && errno != EEXIST)
			continue;
		fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (!fstat(fd, &st) && st.st_uid == getuid())
			return fd;
		close(fd);
	}
	fprintf(stderr, "fake driver: no folder for device memory\n");
	return -1;
}

/* The folder. Creating and counting exclude each other, in all processes. */
class folder_lock {
	int fd;
public:
	int dir;

	folder_lock()
	{
		dir = open_folder();
		fd = dir < 0 ? -1 : openat(dir, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		while (fd >= 0 && flock(fd, LOCK_EX) < 0 && errno == EINTR)
			;
	}
	~folder_lock()
	{
		if (fd >= 0)
			close(fd);
		if (dir >= 0)
			close(dir);
	}
	folder_lock(const folder_lock &) = delete;
	folder_lock &operator=(const folder_lock &) = delete;
};

/* Names are "STATE.dev.size.pid.serial". The file's size if it is in use. */
static size_t look_at(int dir, const char *name)
{
	struct stat st;
	size_t size = 0;
	int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		return 0;
	if (!flock(fd, LOCK_EX | LOCK_NB))
		unlinkat(dir, name, 0);
	else if (!fstat(fd, &st) && (size_t)st.st_size > PAGE)
		size = (size_t)st.st_size - PAGE;
	close(fd);
	return size;
}

static size_t count(int dir, int dev)
{
	std::string prefix = knobs.state + "." + std::to_string(dev) + ".";
	int fd = dir < 0 ? -1 : openat(dir, ".", O_RDONLY | O_CLOEXEC);
	DIR *d = fd < 0 ? nullptr : fdopendir(fd);
	size_t used = 0, n;

	if (!d)
		return 0;
	for (struct dirent *e = readdir(d); e; e = readdir(d)) {
		if (e->d_name[0] == '.' || !strcmp(e->d_name, "lock"))
			continue;
		n = look_at(dir, e->d_name);
		if (!strncmp(e->d_name, prefix.c_str(), prefix.size()))
			used += n;
	}
	closedir(d);
	return used;
}

size_t state_used(int dev)
{
	folder_lock guard;

	return count(guard.dir, dev);
}

void state_sweep()
{
	folder_lock guard;

	count(guard.dir, -1);
}

static bool write_trailer(struct phys *p)
{
	struct trailer t = {};

	memcpy(t.magic, MAGIC, sizeof(MAGIC));
	t.dev = (uint32_t)p->dev;
	t.shareable = p->shareable;
	t.size = p->size;
	t.pad = p->pad;
	snprintf(t.name, sizeof(t.name), "%s", p->name.c_str());
	return ftruncate(p->fd, (off_t)(p->size + PAGE)) == 0 &&
	       pwrite(p->fd, &t, sizeof(t), (off_t)p->size) == (ssize_t)sizeof(t);
}

/* What a driver does not clear. */
static bool fill(struct phys *p)
{
	static const std::string bytes(65536, '\xdb');
	size_t at, n;

	for (at = 0; knobs.garbage && at < p->size; at += n) {
		n = std::min(bytes.size(), p->size - at);
		if (pwrite(p->fd, bytes.data(), n, (off_t)at) != (ssize_t)n)
			return false;
	}
	return true;
}

int phys_create(phys_ptr *out, int dev, size_t size, size_t pad, bool shareable)
{
	phys_ptr p = std::make_shared<struct phys>();
	folder_lock guard;
	char name[96];

	if (guard.dir < 0)
		return CQCU_ERROR_OPERATING_SYSTEM;
	if (count(guard.dir, dev) + size > knobs.memory)
		return CQCU_ERROR_OUT_OF_MEMORY;
	snprintf(name, sizeof(name), "%s.%d.%zx.%d.%u", knobs.state.c_str(), dev, size,
		 getpid(), serial++);
	p->name = name;
	p->dev = dev;
	p->size = size;
	p->pad = pad;
	p->shareable = shareable;
	p->fd = openat(guard.dir, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (p->fd < 0 || flock(p->fd, LOCK_SH | LOCK_NB) < 0 || !write_trailer(p.get()) ||
	    !fill(p.get())) {
		if (p->fd >= 0)
			unlinkat(guard.dir, name, 0);
		return CQCU_ERROR_OUT_OF_MEMORY;
	}
	*out = p;
	return CQCU_SUCCESS;
}

static bool read_trailer(struct phys *p)
{
	struct trailer t;
	struct stat st;

	if (fstat(p->fd, &st) || !S_ISREG(st.st_mode) || (size_t)st.st_size <= PAGE)
		return false;
	if (pread(p->fd, &t, sizeof(t), st.st_size - (off_t)PAGE) != (ssize_t)sizeof(t) ||
	    memcmp(t.magic, MAGIC, sizeof(MAGIC)) || t.size != (uint64_t)st.st_size - PAGE ||
	    t.dev >= MAX_DEVICES || t.pad >= t.size || memchr(t.name, 0, sizeof(t.name)) == nullptr)
		return false;
	p->dev = (int)t.dev;
	p->size = t.size;
	p->pad = t.pad;
	p->shareable = t.shareable != 0;
	p->name = t.name;
	return true;
}

int phys_open(phys_ptr *out, int fd)
{
	phys_ptr p = std::make_shared<struct phys>();

	p->fd = fd;
	if (!read_trailer(p.get())) {
		p->name.clear();
		return CQCU_ERROR_INVALID_VALUE;
	}
	*out = p;
	return CQCU_SUCCESS;
}

/* A second open file of the same memory, with a lock of its own. */
int phys_open_named(phys_ptr *out, const char *name)
{
	folder_lock guard;
	int fd;

	if (guard.dir < 0 || strchr(name, '/') || name[0] == '.')
		return CQCU_ERROR_MAP_FAILED;
	fd = openat(guard.dir, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return CQCU_ERROR_MAP_FAILED;
	if (flock(fd, LOCK_SH | LOCK_NB) < 0) {
		close(fd);
		return CQCU_ERROR_MAP_FAILED;
	}
	return phys_open(out, fd) ? CQCU_ERROR_MAP_FAILED : CQCU_SUCCESS;
}

bool phys_map(struct phys *p)
{
	void *m;

	if (p->alias)
		return true;
	m = mmap(nullptr, p->size, PROT_READ | PROT_WRITE, MAP_SHARED, p->fd, 0);
	if (m == MAP_FAILED)
		return false;
	p->alias = static_cast<char *>(m);
	return true;
}

/* Mappings are all that it needs from now on, and they keep the lock. */
void phys_close(struct phys *p)
{
	close(p->fd);
	p->fd = -1;
}

/* cuMemFree(): whoever has it open may go on, nobody opens it any more. */
void phys_retire(struct phys *p)
{
	folder_lock guard;
	char gone[128];

	snprintf(gone, sizeof(gone), "%s.gone", p->name.c_str());
	if (guard.dir >= 0 && !renameat(guard.dir, p->name.c_str(), guard.dir, gone))
		p->name = gone;
}

phys::~phys()
{
	if (alias)
		munmap(alias, size);
	if (fd >= 0)
		close(fd);
	if (name.empty())
		return;
	folder_lock guard;

	if (guard.dir >= 0)
		look_at(guard.dir, name.c_str());
}

} /* namespace fake */
