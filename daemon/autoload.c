// SPDX-License-Identifier: MIT
/*
 * Model files of the configuration, loaded at start and at a reload.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cq/log.h"
#include "daemon/msgid.h"
#include "daemon/server.h"

struct load {
	struct cqd_server *srv;
	void (*done)(struct cqd_server *srv);
	char name[CQP_MAX_NAME];
};

static void finish(struct load *l)
{
	struct cqd_server *srv = l->srv;
	void (*done)(struct cqd_server *srv) = l->done;

	free(l);
	if (--srv->loading == 0)
		done(srv);
}

static void failed(const char *name, int code, const char *what, const char *why)
{
	cq_log_field("MESSAGE_ID", "%s", CQD_MSG_MODEL_FAILED);
	cq_log_field("CQ_MODEL", "%s", name);
	cq_log_field("ERRNO", "%d", -code);
	cq_err("model \"%s\": %s%s", name, what, why);
}

static void on_loaded(void *arg, int ret, const uint8_t hash[32], bool existing,
		      const struct cq_err *err)
{
	struct load *l = arg;

	if (ret) {
		failed(l->name, ret, "", err ? err->text : strerror(-ret));
	} else if (!existing) {
		cq_log_field("CQ_MODEL", "%s", l->name);
		cq_info("model \"%s\" loaded, hash %02x%02x%02x%02x", l->name, hash[0], hash[1],
			hash[2], hash[3]);
	}
	finish(l);
}

/* A file that fails is reported; cqd serves the others. */
static void load_one(struct cqd_server *srv, const struct cqd_model_config *m,
		     void (*done)(struct cqd_server *srv))
{
	struct load *l = calloc(1, sizeof(*l));
	struct cq_err err = { "" };
	int fd, ret;

	if (!l) {
		failed(m->name, -ENOMEM, "", "out of memory");
		return;
	}
	l->srv = srv;
	l->done = done;
	snprintf(l->name, sizeof(l->name), "%s", m->name);
	fd = open(m->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0) {
		snprintf(err.text, sizeof(err.text), "%s: %s", m->path, strerror(errno));
		failed(m->name, -errno, "cannot open ", err.text);
		free(l);
		return;
	}
	srv->loading++;
	ret = cqd_model_load(srv->store, m->name, fd, on_loaded, l, &err);
	close(fd);
	if (ret) {
		failed(m->name, ret, "", err.text);
		srv->loading--;
		free(l);
	}
}

/**
 * cqd_models_load() - load what a configuration names
 * @srv:  server
 * @cfg:  configuration
 * @done: called on the loop once all have been tried, possibly before return
 */
void cqd_models_load(struct cqd_server *srv, const struct cqd_config *cfg,
		     void (*done)(struct cqd_server *srv))
{
	unsigned int i;

	srv->loading++;		/* this function itself */
	for (i = 0; i < cfg->n_models; i++)
		load_one(srv, &cfg->model[i], done);
	if (--srv->loading == 0)
		done(srv);
}
