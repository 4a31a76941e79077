/* SPDX-License-Identifier: MIT */
/*
 * cqd.conf: what cqd is allowed to use, who may connect, and which models are
 * loaded at start. cqd.conf.5 describes every key.
 */
#ifndef CQD_CONFIG_H
#define CQD_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include "cq/err.h"
#include "daemon/mem.h"

#define CQD_DEFAULT_CONFIG "/etc/cq/cqd.conf"

/*
 * struct cqd_names - list of words
 * @n: words in @name
 */
struct cqd_names {
	char **name;
	unsigned int n;
};

/*
 * struct cqd_uids - who belongs to a namespace
 * @any: everybody ("*")
 * @n:   uids in @uid
 */
struct cqd_uids {
	uid_t *uid;
	unsigned int n;
	bool any;
};

/*
 * struct cqd_size - bytes, or a share of something that is known later
 * @bytes:   resolved, if @percent is not 0
 * @percent: 1 to 100
 */
struct cqd_size {
	uint64_t bytes;
	uint32_t percent;
};

#define CQD_MAX_READS 8	/* namespaces that one may read besides itself */

/*
 * struct cqd_ns_config - one [namespace NAME] section
 * @socket:      path of a socket of its own, NULL: reached through the common one
 * @quota_bytes: resolved against the pool; 0: the pool's limit
 * @connections: at the same time; 0: no limit of its own
 * @priority, @ttl_s: of pages whose seal names none; @priority_max: what it may name
 * @models:      those its members may open; empty: all
 * @readable_by: namespaces whose members may attach to its pages
 */
struct cqd_ns_config {
	char *name;
	struct cqd_uids uid;
	char *socket;
	struct cqd_size quota_bytes;
	uint64_t quota_pages;
	uint64_t quota_pins;
	uint32_t connections;
	uint32_t priority, priority_max, ttl_s;
	char *salt;
	struct cqd_names models;
	struct cqd_names readable_by;
};

#define CQD_MAX_GPUS 16

enum cqd_sharing { CQD_SHARING_VMM, CQD_SHARING_IPC };

/*
 * struct cqd_gpu_config - one [gpu NAME] section: memory of a GPU
 * @pool_bytes: a share is one of the GPU's memory, which is not known here
 * @sharing:    enum cqd_sharing
 * @holder:     socket of cq-holder, with CQD_SHARING_IPC; else NULL
 * @trust_readers: readable_by holds there too
 */
struct cqd_gpu_config {
	char *name, *uuid, *holder;
	struct cqd_size pool_bytes;
	uint32_t sharing, trust_readers;
};

/* One [model NAME] section: a file loaded at start. */
struct cqd_model_config {
	char *name;
	char *path;
};

/*
 * struct cqd_config - a whole file, checked
 * @metrics_socket, @metrics_listen: NULL: none
 * @pool_bytes: resolved against the machine's memory by cqd_config_load()
 * @half_life_s: after so long a use of a page counts half
 * @pressure_us: stall in 2 s at which memory is given back; 0: never
 */
struct cqd_config {
	char *socket, *admin_socket, *metrics_socket, *metrics_listen;
	uint32_t socket_mode;
	struct cqd_size pool_bytes;
	uint32_t max_pages, max_clients, max_pins;
	uint64_t segment_min, segment_max;
	uint32_t low, high, half_life_s, pressure_us;
	uint64_t verify_rate;
	char *persist;		/* folder, NULL: off */
	uint64_t persist_rate;
	char *backend;
	struct cqd_mem_policy policy;
	uint32_t max_connections, uid_connections;
	struct cqd_ns_config *ns;
	unsigned int n_ns;
	struct cqd_model_config *model;
	unsigned int n_models;
	struct cqd_gpu_config *gpu;
	unsigned int n_gpus;
};

/* NULL: all defaults. 0; -ENOENT; -EINVAL with file and line; -ENOMEM; other -errno. */
int cqd_config_load(const char *path, struct cqd_config **out, struct cq_err *err);
void cqd_config_free(struct cqd_config *cfg);	/* accepts NULL */

/* The pool in force, of which quotas may be shares. */
void cqd_config_pool(struct cqd_config *cfg, uint64_t bytes);
/* First key that differs and that a reload cannot take, or NULL. */
const char *cqd_config_fixed(const struct cqd_config *old,
			     const struct cqd_config *new);

/* The namespace of that name, or NULL. */
const struct cqd_ns_config *cqd_config_ns(const struct cqd_config *cfg,
					  const char *name);
bool cqd_uids_match(const struct cqd_uids *uids, uid_t uid);
/* [A-Za-z0-9._-], 1 to 63 characters, not starting with '.' or '-'. */
bool cqd_name_ok(const char *name);

/* Values. Each returns 0 or -EINVAL with the reason, and leaves @out alone then. */
int cqd_value_u64(const char *s, uint64_t min, uint64_t max, uint64_t *out,
		  struct cq_err *err);
/* 4096, 16M, 1.5G are bytes (suffixes k, M, G, T: powers of 1024); 25% a share. */
int cqd_value_size(const char *s, bool share, struct cqd_size *out,
		   struct cq_err *err);
/* 90, 90s, 15m, 2h, 7d; 150ms; in microseconds. */
int cqd_value_time(const char *s, uint64_t *us, struct cq_err *err);
/* "off", or "some TIME" of a 2 s window, 0 or in us. */
int cqd_value_pressure(const char *s, uint32_t *us, struct cq_err *err);
/* never, auto, always: sets @out->huge. */
int cqd_value_huge(const char *s, struct cqd_mem_policy *out, struct cq_err *err);
/* default, interleave, bind:0,2-3, preferred:0: sets the rest. */
int cqd_value_numa(const char *s, struct cqd_mem_policy *out, struct cq_err *err);
int cqd_value_mode(const char *s, uint32_t *out, struct cq_err *err);
int cqd_value_uids(const char *s, struct cqd_uids *out, struct cq_err *err);
struct cqd_address {
	struct sockaddr_storage sa;
	socklen_t len;
};
/* Numbers alone: 127.0.0.1:9464 or [::1]:9464. */
int cqd_value_address(const char *s, struct cqd_address *out, struct cq_err *err);
int cqd_value_names(const char *s, struct cqd_names *out, struct cq_err *err);

/* --- config_gpu.c --- */

/* vmm, ipc: sets enum cqd_sharing. */
int cqd_value_sharing(const char *s, uint32_t *out, struct cq_err *err);
/* yes, no. */
int cqd_value_bool(const char *s, uint32_t *out, struct cq_err *err);
/* Checks them, and sets what has a default. 0; -EINVAL; -ENOMEM. */
int cqd_config_gpus(struct cqd_config *cfg, const char *path, struct cq_err *err);
void cqd_config_gpus_free(struct cqd_config *cfg);

/* --- config_file.c --- */

/* What the file at @path sets, over the defaults in @cfg. 0 or -errno. */
int cqd_config_read(const char *path, struct cqd_config *cfg, struct cq_err *err);
/* NULL: none. */
bool cqd_same_text(const char *a, const char *b);

#endif /* CQD_CONFIG_H */
