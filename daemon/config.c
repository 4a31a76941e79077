// SPDX-License-Identifier: MIT
/*
 * cqd.conf as a whole: defaults, what sections must agree on, the end.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include "cq/util.h"
#include "daemon/config.h"
#include "proto/proto.h"

#define MIB (1ull << 20)

static char *copy_default(const char *s, bool *failed)
{
	char *p = strdup(s);

	if (!p)
		*failed = true;
	return p;
}

static struct cqd_config *config_new(void)
{
	struct cqd_config *cfg = calloc(1, sizeof(*cfg));
	bool failed = false;

	if (!cfg)
		return NULL;
	cfg->socket = copy_default(CQP_DEFAULT_SOCKET, &failed);
	cfg->admin_socket = copy_default(CQP_DEFAULT_ADMIN, &failed);
	cfg->backend = copy_default("memfd", &failed);
	cfg->socket_mode = 0660;
	cfg->pool_bytes.percent = 25;
	cfg->max_pages = 1u << 18;
	cfg->max_clients = 4096;
	cfg->max_pins = 1u << 20;
	cfg->segment_min = 16 * MIB;
	cfg->segment_max = 512 * MIB;
	cfg->low = 85;
	cfg->high = 95;
	cfg->half_life_s = 600;
	cfg->policy.huge = CQD_HUGE_AUTO;
	cfg->verify_rate = 256 * MIB;
	cfg->persist_rate = 64 * MIB;
	cfg->max_connections = 4096;
	cfg->uid_connections = 2048;
	if (failed) {
		cqd_config_free(cfg);
		return NULL;
	}
	return cfg;
}

static uint64_t machine_bytes(void)
{
	struct sysinfo si;

	return sysinfo(&si) < 0 ? 0 : (uint64_t)si.totalram * si.mem_unit;
}

static void resolve(struct cqd_size *size, uint64_t whole)
{
	if (size->percent)
		size->bytes = whole / 100 * size->percent;
}

/**
 * cqd_config_pool() - the pool is not as large as the file says
 * @cfg:   configuration
 * @bytes: of the pool, which stays as it is until cqd is restarted
 *
 * Shares of it are shares of what it is.
 */
void cqd_config_pool(struct cqd_config *cfg, uint64_t bytes)
{
	unsigned int i;

	cfg->pool_bytes = (struct cqd_size){ .bytes = bytes };
	for (i = 0; i < cfg->n_ns; i++)
		resolve(&cfg->ns[i].quota_bytes, bytes);
}

/* A machine without any section: one namespace for everybody. */
static int add_default_ns(struct cqd_config *cfg)
{
	struct cqd_ns_config *ns = calloc(1, sizeof(*ns));

	if (!ns)
		return -ENOMEM;
	ns->name = strdup("default");
	if (!ns->name) {
		free(ns);
		return -ENOMEM;
	}
	ns->uid.any = true;
	ns->priority_max = UINT8_MAX;
	cfg->ns = ns;
	cfg->n_ns = 1;
	return 0;
}

static int check_daemon(const struct cqd_config *cfg, const char *path,
			struct cq_err *err)
{
	if (cfg->low >= cfg->high)
		return cq_err_set(err, -EINVAL, "%s: low (%u) must be less than high (%u)",
				  path, cfg->low, cfg->high);
	if (cfg->segment_min > cfg->segment_max)
		return cq_err_set(err, -EINVAL, "%s: segment_min is more than segment_max", path);
	if (cfg->segment_min % 4096 || cfg->segment_max % 4096)
		return cq_err_set(err, -EINVAL, "%s: segment_min and segment_max must be "
				  "multiples of 4k", path);
	if (cfg->pool_bytes.bytes < cfg->segment_min)
		return cq_err_set(err, -EINVAL, "%s: pool_bytes (%llu) is less than one segment "
				  "(segment_min, %llu)", path,
				  (unsigned long long)cfg->pool_bytes.bytes,
				  (unsigned long long)cfg->segment_min);
	if (!strcmp(cfg->socket, cfg->admin_socket))
		return cq_err_set(err, -EINVAL, "%s: socket and admin_socket are the same", path);
	if (cfg->metrics_socket && (!strcmp(cfg->metrics_socket, cfg->socket) ||
				    !strcmp(cfg->metrics_socket, cfg->admin_socket)))
		return cq_err_set(err, -EINVAL, "%s: metrics_socket needs a path of its own",
				  path);
	return 0;
}

/* A reader finds pages by keys that it derives with its own salt. */
static int check_reader(const struct cqd_config *cfg, const struct cqd_ns_config *ns,
			const char *reader, const char *path, struct cq_err *err)
{
	const struct cqd_ns_config *r = cqd_config_ns(cfg, reader);

	if (!r)
		return cq_err_set(err, -EINVAL, "%s: [namespace %s] readable_by: there is no "
				  "[namespace %s]", path, ns->name, reader);
	if (r == ns)
		return cq_err_set(err, -EINVAL, "%s: [namespace %s] readable_by names itself",
				  path, ns->name);
	if (!cqd_same_text(r->salt, ns->salt))
		return cq_err_set(err, -EINVAL, "%s: [namespace %s] readable_by: %s has another "
				  "salt and would find no page: give both the same", path,
				  ns->name, reader);
	return 0;
}

static unsigned int count_reads(const struct cqd_config *cfg, const char *reader)
{
	unsigned int i, j, n = 0;

	for (i = 0; i < cfg->n_ns; i++)
		for (j = 0; j < cfg->ns[i].readable_by.n; j++)
			n += !strcmp(cfg->ns[i].readable_by.name[j], reader);
	return n;
}

static int check_readers(const struct cqd_config *cfg, const char *path, struct cq_err *err)
{
	const struct cqd_names *names;
	unsigned int i, j;
	int ret = 0;

	for (i = 0; i < cfg->n_ns && !ret; i++) {
		names = &cfg->ns[i].readable_by;
		for (j = 0; j < names->n && !ret; j++)
			ret = check_reader(cfg, &cfg->ns[i], names->name[j], path, err);
		if (!ret && count_reads(cfg, cfg->ns[i].name) > CQD_MAX_READS)
			ret = cq_err_set(err, -EINVAL, "%s: namespace %s is named by more than "
					 "%d readable_by", path, cfg->ns[i].name,
					 CQD_MAX_READS);
	}
	return ret;
}

/* Who reaches a namespace's socket is a member of it: no other may have the same. */
static int check_socket(const struct cqd_config *cfg, const struct cqd_ns_config *ns,
			const char *path, struct cq_err *err)
{
	const struct cqd_ns_config *other;

	if (!ns->socket)
		return 0;
	if (cqd_same_text(ns->socket, cfg->socket) ||
	    cqd_same_text(ns->socket, cfg->admin_socket) ||
	    cqd_same_text(ns->socket, cfg->metrics_socket))
		return cq_err_set(err, -EINVAL, "%s: [namespace %s] socket is one of [daemon]'s",
				  path, ns->name);
	for (other = cfg->ns; other < ns; other++)
		if (cqd_same_text(ns->socket, other->socket))
			return cq_err_set(err, -EINVAL, "%s: [namespace %s] socket is that of "
					  "[namespace %s]: each needs its own", path, ns->name,
					  other->name);
	return 0;
}

static int check_sections(const struct cqd_config *cfg, const char *path,
			  struct cq_err *err)
{
	const struct cqd_ns_config *ns;
	unsigned int i;

	for (i = 0; i < cfg->n_ns; i++) {
		ns = &cfg->ns[i];
		if (!ns->uid.any && !ns->uid.n)
			return cq_err_set(err, -EINVAL, "%s: [namespace %s] has no uid; "
					  "\"uid = *\" admits everybody", path, ns->name);
		if (check_socket(cfg, ns, path, err))
			return -EINVAL;
	}
	for (i = 0; i < cfg->n_models; i++)
		if (!cfg->model[i].path)
			return cq_err_set(err, -EINVAL, "%s: [model %s] has no path", path,
					  cfg->model[i].name);
	return 0;
}

static int finish(struct cqd_config *cfg, const char *path, struct cq_err *err)
{
	int ret;

	resolve(&cfg->pool_bytes, machine_bytes());
	if (!cfg->n_ns && add_default_ns(cfg) < 0)
		return cq_err_set(err, -ENOMEM, "out of memory");
	cqd_config_pool(cfg, cfg->pool_bytes.bytes);
	ret = check_daemon(cfg, path, err);
	if (!ret)
		ret = check_sections(cfg, path, err);
	if (!ret)
		ret = cqd_config_gpus(cfg, path, err);
	return ret ? ret : check_readers(cfg, path, err);
}

/**
 * cqd_config_load() - read and check a file
 * @path: file; NULL: all defaults
 * @out:  configuration, freed with cqd_config_free(); untouched on failure
 * @err:  what is wrong, with file and line
 *
 * Return: 0; -ENOENT; -EINVAL; -ENOMEM; other -errno of reading.
 */
int cqd_config_load(const char *path, struct cqd_config **out, struct cq_err *err)
{
	struct cqd_config *cfg = config_new();
	int ret = 0;

	if (!cfg)
		return cq_err_set(err, -ENOMEM, "out of memory");
	if (path)
		ret = cqd_config_read(path, cfg, err);
	if (!ret)
		ret = finish(cfg, path ? path : "built-in configuration", err);
	if (ret) {
		cqd_config_free(cfg);
		return ret;
	}
	*out = cfg;
	return 0;
}

static void names_free(struct cqd_names *names)
{
	unsigned int i;

	for (i = 0; i < names->n; i++)
		free(names->name[i]);
	free(names->name);
}

static void ns_free(struct cqd_ns_config *ns)
{
	names_free(&ns->models);
	names_free(&ns->readable_by);
	free(ns->uid.uid);
	free(ns->socket);
	free(ns->salt);
	free(ns->name);
}

/**
 * cqd_config_free() - free a configuration
 * @cfg: accepts NULL and half-built ones
 */
void cqd_config_free(struct cqd_config *cfg)
{
	unsigned int i;

	if (!cfg)
		return;
	for (i = 0; i < cfg->n_ns; i++)
		ns_free(&cfg->ns[i]);
	for (i = 0; i < cfg->n_models; i++) {
		free(cfg->model[i].name);
		free(cfg->model[i].path);
	}
	cqd_config_gpus_free(cfg);
	free(cfg->ns);
	free(cfg->model);
	free(cfg->socket);
	free(cfg->admin_socket);
	free(cfg->metrics_socket);
	free(cfg->metrics_listen);
	free(cfg->persist);
	free(cfg->backend);
	free(cfg);
}

/**
 * cqd_config_ns() - namespace by name
 * @cfg:  configuration
 * @name: looked for
 *
 * Return: its section, or NULL.
 */
const struct cqd_ns_config *cqd_config_ns(const struct cqd_config *cfg,
					  const char *name)
{
	unsigned int i;

	for (i = 0; i < cfg->n_ns; i++)
		if (!strcmp(cfg->ns[i].name, name))
			return &cfg->ns[i];
	return NULL;
}
