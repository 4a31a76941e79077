// SPDX-License-Identifier: MIT
/*
 * Files of calibrate: the dump, the model file, the partial file.
 *
 * The dump is mapped. Its pages may be changed by others meanwhile; then the
 * codebooks are bad, and a dump that is cut short raises SIGBUS: nothing is
 * written in either case but a file that parses, or none. What was read is let
 * go, so that a dump may be larger than memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "client/cqctl/calibrate.h"
#include "kernels/meta.h"

int ctl_calib_map(struct calib *cal)
{
	int fd = open(cal->acts, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), ret;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0) {
		ret = cq_err_set(&cal->c->err, -errno, "cannot open %s: %s", cal->acts,
				 strerror(errno));
		goto out;
	}
	ret = cq_err_set(&cal->c->err, -EINVAL, "%s is not a regular file, or empty",
			 cal->acts);
	if (!S_ISREG(st.st_mode) || st.st_size <= 0)
		goto out;
	cal->size = (size_t)st.st_size;
	cal->stamp[0] = st.st_mtim.tv_sec;
	cal->stamp[1] = st.st_mtim.tv_nsec;
	cal->dev = st.st_dev;
	cal->ino = st.st_ino;
	cal->dump = mmap(NULL, cal->size, PROT_READ, MAP_PRIVATE, fd, 0);
	ret = 0;
	if (cal->dump == MAP_FAILED) {
		cal->dump = NULL;
		ret = cq_err_set(&cal->c->err, -errno, "cannot map %s: %s", cal->acts,
				 strerror(errno));
	}
out:
	if (fd >= 0)
		close(fd);
	return ret;
}

void ctl_calib_release(void *arg, const void *data, size_t size)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from, to;

	/* at the ends lie bytes of neighbours that may be in use */
	from = ALIGN_UP((uintptr_t)data, page);
	to = ((uintptr_t)data + size) & ~(page - 1);
	if (to > from)
		madvise((void *)from, to - from, MADV_DONTNEED);
}

/* @path would replace the dump, by whatever name. */
static int not_the_dump(struct calib *cal, const char *path, const struct stat *st)
{
	if (st->st_dev != cal->dev || st->st_ino != cal->ino)
		return 0;
	return cq_err_set(&cal->c->err, -EINVAL, "%s is the dump %s, which would be "
			  "overwritten: choose another output", path, cal->acts);
}

/* The partial file, which is opened and so far as it was. */
static int check_partial(struct calib *cal)
{
	struct stat st;
	int ret = ctl_partial_open(&cal->partial, cal->output, &cal->c->err);

	if (ret || fstat(cal->partial.fd, &st) < 0)
		return ret;
	return not_the_dump(cal, cal->partial.path, &st);
}

/*
 * Known before the work that takes long: a file can be made beside the output,
 * and what has its name is a file, not a folder or /dev/null, and not the dump.
 */
int ctl_calib_check_output(struct calib *cal)
{
	const char *slash = strrchr(cal->output, '/');
	struct stat st;
	bool there = !stat(cal->output, &st);
	char *dir;
	int ret;

	if (there && !S_ISREG(st.st_mode))
		return cq_err_set(&cal->c->err, -EINVAL, "%s is there and not a regular "
				  "file: choose another output", cal->output);
	if (there && not_the_dump(cal, cal->output, &st))
		return -EINVAL;
	if (asprintf(&dir, "%.*s.", (int)(slash ? slash + 1 - cal->output : 0),
		     cal->output) < 0)
		return cq_err_set(&cal->c->err, -ENOMEM, "out of memory");
	ret = faccessat(AT_FDCWD, dir, W_OK | X_OK, AT_EACCESS) < 0 ? -errno : 0;
	free(dir);
	if (!ret)
		return check_partial(cal);
	return cq_err_set(&cal->c->err, ret, "cannot write %s: %s", cal->output,
			  strerror(-ret));
}

/* Under a name of its own first: the output is old, or new and whole. */
static int write_beside(struct calib *cal, const void *image, size_t size)
{
	mode_t mask = umask(0);
	char *tmp;
	int fd, ret;

	umask(mask);
	if (asprintf(&tmp, "%s.XXXXXX", cal->output) < 0)
		return cq_err_set(&cal->c->err, -ENOMEM, "out of memory");
	fd = mkostemp(tmp, O_CLOEXEC);
	ret = fd < 0 ? -errno : ctl_write_at(fd, image, size, 0);
	if (!ret && (fchmod(fd, 0666 & ~mask) < 0 || fsync(fd) < 0))
		ret = -errno;
	if (fd >= 0 && close(fd) < 0 && !ret)
		ret = -errno;
	if (!ret && rename(tmp, cal->output) < 0)
		ret = -errno;
	if (ret && fd >= 0)
		unlink(tmp);
	free(tmp);
	if (!ret)
		return 0;
	return cq_err_set(&cal->c->err, ret, "cannot write %s: %s", cal->output,
			  strerror(-ret));
}

/* A signal that ends us waits until no temporary file is left. */
int ctl_calib_write(struct calib *cal, const void *image, size_t size)
{
	static const int ends[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM };
	sigset_t set, old;
	size_t i;
	int ret;

	sigemptyset(&set);
	for (i = 0; i < ARRAY_SIZE(ends); i++)
		sigaddset(&set, ends[i]);
	sigprocmask(SIG_BLOCK, &set, &old);
	ret = write_beside(cal, image, size);
	if (!ret)
		ctl_partial_remove(&cal->partial);
	sigprocmask(SIG_SETMASK, &old, NULL);
	return ret;
}

/* What decides the outcome: the same run has the same digest. */
static int digest(const struct calib *cal, uint8_t *out)
{
	const struct cqk_calib_opts *o = &cal->opts;
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	uint64_t header = 0;
	char text[512], rope[256];
	int n, ok;

	memcpy(&header, cal->dump, sizeof(header));
	n = snprintf(text, sizeof(text), "cqctl " CQ_VERSION " %s %u %u %u %a %u %u %llu %zu "
		     "%lld %lld", cqk_rope_text(&o->geom, rope, sizeof(rope)), o->centroids,
		     o->sinks, o->fisher, o->clip, o->iterations, o->starts,
		     (unsigned long long)o->seed, cal->size, (long long)cal->stamp[0],
		     (long long)cal->stamp[1]);
	ok = md && EVP_DigestInit_ex(md, EVP_sha256(), NULL) &&
	     EVP_DigestUpdate(md, text, (size_t)n) &&
	     EVP_DigestUpdate(md, cal->code, sizeof(cal->code)) &&
	     EVP_DigestUpdate(md, cal->dump, MIN(header + 8, cal->size)) &&
	     EVP_DigestFinal_ex(md, out, NULL);
	EVP_MD_CTX_free(md);
	return ok ? 0 : -ENOMEM;
}

static int load(void *arg, uint32_t layer, void *data, size_t size)
{
	struct calib *cal = arg;
	int ret = ctl_partial_load(&cal->partial, layer, data, size);

	cal->unkept = ret < 0;
	if (ret < 0)
		cq_err_set(&cal->c->err, ret, "layer %u was kept and cannot be read from %s: %s: "
			   "do without --resume", layer, cal->partial.path, strerror(-ret));
	return ret;
}

static int save(void *arg, uint32_t layer, const void *data, size_t size)
{
	struct calib *cal = arg;
	int ret = ctl_partial_save(&cal->partial, layer, data, size);

	cal->unkept = ret < 0;
	if (ret < 0)
		cq_err_set(&cal->c->err, ret, "layer %u is learnt and cannot be kept in %s: %s: "
			   "make room there and go on with --resume", layer, cal->partial.path,
			   strerror(-ret));
	return ret;
}

int ctl_calib_partial(struct calib *cal)
{
	uint8_t id[32];

	if (digest(cal, id))
		return cq_err_set(&cal->c->err, -ENOMEM, "out of memory");
	cal->opts.load = load;
	cal->opts.save = save;
	return ctl_partial_start(&cal->partial, id, cal->resume, &cal->c->err);
}
