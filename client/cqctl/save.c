// SPDX-License-Identifier: MIT
/*
 * save, restore: the file is opened here, since cqd itself can write nowhere,
 * and its descriptor goes along. cqd writes and reads it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "client/cqctl/cqctl.h"

/* Of this run's one transfer: asked for over a connection of its own. */
static struct ctl meter = { .sock = -1, .next_id = 1 };

static void show_progress(struct ctl *c)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Status status = CQP__STATUS__INIT;
	char a[24], b[24];
	int ret;

	meter.socket = c->socket;
	msg.body_case = CQP__MSG__BODY_STATUS;
	msg.status = &status;
	reply = ctl_call(&meter, &msg, -1, CQP__MSG__BODY_STATUS_OK, &ret);
	if (!reply)
		return;
	if (reply->status_ok->has_transfer_total)
		fprintf(stderr, "\r%s of %s at most   ",
			ctl_bytes(reply->status_ok->transfer_done, a),
			ctl_bytes(reply->status_ok->transfer_total, b));
	cqp_free(reply);
}

static Cqp__Msg *transfer(struct ctl *c, Cqp__Msg *msg, int fd, Cqp__Msg__BodyCase want,
			  int *ret)
{
	bool show = isatty(STDERR_FILENO);
	Cqp__Msg *reply;

	if (show)
		c->tick = show_progress;
	reply = ctl_call(c, msg, fd, want, ret);
	c->tick = NULL;
	ctl_disconnect(&meter);
	if (show)
		fputs("\r\033[K", stderr);
	return reply;
}

/* --- save --- */

/*
 * struct output - a file that appears whole or not at all
 * @tmp: name beside @path, "" while the file has none
 */
struct output {
	const char *path;
	char *dir, *tmp;
	int fd;
};

static int out_error(struct ctl *c, const struct output *o, int code)
{
	return cq_err_set(&c->err, code, "cannot write %s: %s", o->path, strerror(-code));
}

static int out_open(struct ctl *c, struct output *o)
{
	const char *slash = strrchr(o->path, '/');
	struct stat st;
	mode_t old;

	if (!stat(o->path, &st) && !S_ISREG(st.st_mode))
		return cq_err_set(&c->err, -EINVAL, "%s is there and not a regular file: "
				  "choose another one", o->path);
	if (asprintf(&o->dir, "%.*s.", (int)(slash ? slash + 1 - o->path : 0), o->path) < 0)
		o->dir = NULL;
	if (!o->dir || asprintf(&o->tmp, "%s.XXXXXX", o->path) < 0) {
		cq_err_set(&c->err, -ENOMEM, "out of memory");
		return -ENOMEM;
	}
	/* Every tenant's pages: nobody else's to read. */
	old = umask(0077);
	o->fd = open(o->dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (o->fd >= 0)
		o->tmp[0] = '\0';
	else if (errno == EOPNOTSUPP || errno == EISDIR)
		o->fd = mkostemp(o->tmp, O_CLOEXEC);
	umask(old);
	return o->fd < 0 ? out_error(c, o, -errno) : 0;
}

/* A name for the nameless: a file cannot be linked over another. */
static int link_as(const struct output *o, char *name)
{
	char proc[40];
	int fd = mkostemp(name, O_CLOEXEC);

	if (fd < 0)
		return -errno;
	close(fd);
	unlink(name);
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", o->fd);
	return linkat(AT_FDCWD, proc, AT_FDCWD, name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

static int out_link(struct output *o)
{
	int ret = -EEXIST, tries;
	char *name;

	for (tries = 0; ret == -EEXIST && tries < 16; tries++) {
		if (asprintf(&name, "%s.XXXXXX", o->path) < 0)
			return -ENOMEM;
		ret = link_as(o, name);
		if (ret) {
			free(name);
			continue;
		}
		free(o->tmp);
		o->tmp = name;
	}
	return ret;
}

static int out_finish(struct ctl *c, struct output *o)
{
	int ret = 0, dir;

	if (fsync(o->fd) < 0)
		ret = -errno;
	if (!ret && !o->tmp[0])
		ret = out_link(o);
	if (!ret && rename(o->tmp, o->path) < 0)
		ret = -errno;
	if (ret)
		return out_error(c, o, ret);
	o->tmp[0] = '\0';
	dir = open(o->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir >= 0) {
		if (fsync(dir) < 0)
			ret = -errno;
		close(dir);
	}
	return ret ? out_error(c, o, ret) : 0;
}

static void out_close(struct output *o)
{
	if (o->fd >= 0)
		close(o->fd);
	if (o->fd >= 0 && o->tmp && o->tmp[0])
		unlink(o->tmp);
	free(o->tmp);
	free(o->dir);
}

static int report_save(struct ctl *c, const char *path, const Cqp__SaveOk *s)
{
	char a[24], b[24];

	if (c->json)
		return ctl_print_json(json_pack("{s:o, s:I, s:I, s:I, s:I}", "file",
						ctl_json_text(path), "skipped",
						(json_int_t)s->skipped, "pages",
						(json_int_t)s->pages, "bytes",
						(json_int_t)s->bytes, "us",
						(json_int_t)s->us));
	printf("%" PRIu64 " pages, %s saved to %s in %s\n", s->pages,
	       ctl_bytes(s->bytes, a), path, ctl_time(s->us, b));
	if (s->has_skipped)
		printf("%" PRIu64 " pages in the memory of GPUs were not saved: cqd cannot read "
		       "them\n", s->skipped);
	return CTL_OK;
}

int ctl_cmd_save(struct ctl *c, int argc, char **argv)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Save save = CQP__SAVE__INIT;
	struct output o = { .fd = -1 };
	int ret = ctl_parse(c, argc, argv, NULL, &o.path, 1, 1);

	if (ret != CTL_GO_ON)
		return ret;
	ret = out_open(c, &o);
	if (ret)
		goto out;
	msg.body_case = CQP__MSG__BODY_SAVE;
	msg.save = &save;
	reply = transfer(c, &msg, o.fd, CQP__MSG__BODY_SAVE_OK, &ret);
	if (!reply)
		goto out;
	ret = out_finish(c, &o);
	if (!ret) {
		ret = report_save(c, o.path, reply->save_ok);
		cqp_free(reply);
		out_close(&o);
		return ret;
	}
	cqp_free(reply);
out:
	out_close(&o);
	return ctl_fail(c, ret, "%s", c->err.text);
}

/* --- restore --- */

/* Why pages did not come back: JSON's names and what people read. */
#define R(field, text) { #field, text, offsetof(Cqp__RestoreOk, field) }
static const struct {
	const char *name, *text;
	size_t at;
} reasons[] = {
	R(lost, "missing in the file, which is cut or damaged"),
	R(bad, "damaged, or of another salt"),
	R(no_parent, "without the page before them"),
	R(no_model, "of a model that is not loaded"),
	R(no_namespace, "of a namespace that is not in cqd.conf"),
	R(no_room, "without room in the pool, the index or a quota"),
};

static uint64_t reason(const Cqp__RestoreOk *r, size_t i)
{
	uint64_t n;

	memcpy(&n, (const char *)r + reasons[i].at, sizeof(n));
	return n;
}

static int restore_json(const Cqp__RestoreOk *r)
{
	json_t *o = json_pack("{s:I, s:I, s:I, s:I}", "restored", (json_int_t)r->restored,
			      "bytes", (json_int_t)r->bytes, "existing",
			      (json_int_t)r->existing, "us", (json_int_t)r->us);
	size_t i;

	for (i = 0; i < ARRAY_SIZE(reasons); i++)
		json_object_set_new(o, reasons[i].name,
				    json_integer((json_int_t)reason(r, i)));
	if (r->missing)
		json_object_set_new(o, "missing", ctl_json_text(r->missing));
	return ctl_print_json(o);
}

static int report_restore(struct ctl *c, const Cqp__RestoreOk *r)
{
	char a[24], b[24];
	uint64_t left = 0;
	size_t i;
	int ret = CTL_OK;

	for (i = 0; i < ARRAY_SIZE(reasons); i++)
		left += reason(r, i);
	if (c->json) {
		ret = restore_json(r);
	} else {
		printf("%" PRIu64 " pages, %s restored in %s; %" PRIu64 " were there\n",
		       r->restored, ctl_bytes(r->bytes, a), ctl_time(r->us, b), r->existing);
		for (i = 0; i < ARRAY_SIZE(reasons); i++)
			if (reason(r, i))
				printf("%" PRIu64 " %s\n", reason(r, i), reasons[i].text);
		if (r->missing) {
			fputs("missing: ", stdout);
			ctl_put_text(stdout, r->missing);
			putchar('\n');
		}
	}
	return !ret && left ? CTL_FAILED : ret;
}

int ctl_cmd_restore(struct ctl *c, int argc, char **argv)
{
	Cqp__Restore restore = CQP__RESTORE__INIT;
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	const char *path;
	int ret = ctl_parse(c, argc, argv, NULL, &path, 1, 1), fd;

	if (ret != CTL_GO_ON)
		return ret;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return ctl_fail(c, -errno, "cannot open %s: %s", path, strerror(errno));
	msg.body_case = CQP__MSG__BODY_RESTORE;
	msg.restore = &restore;
	reply = transfer(c, &msg, fd, CQP__MSG__BODY_RESTORE_OK, &ret);
	close(fd);
	if (!reply)
		return ctl_fail(c, ret, "%s: %s", path, c->err.text);
	ret = report_restore(c, reply->restore_ok);
	cqp_free(reply);
	return ret;
}
