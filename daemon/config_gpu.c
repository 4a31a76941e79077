// SPDX-License-Identifier: MIT
/* The sections [gpu NAME] of cqd.conf: what each must have, what they must not share. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "cq/util.h"
#include "daemon/config.h"
#include "proto/holder.h"

#define UUID_CHARS 40		/* "GPU-" and 36 more */

static bool uuid_ok(const char *s)
{
	size_t i;

	if (strlen(s) != UUID_CHARS || (strncasecmp(s, "GPU-", 4) && strncasecmp(s, "MIG-", 4)))
		return false;
	for (i = 4; s[i]; i++)
		if (i == 12 || i == 17 || i == 22 || i == 27 ? s[i] != '-' :
		    !isxdigit((unsigned char)s[i]))
			return false;
	return true;
}

static int check_one(const struct cqd_config *cfg, const struct cqd_gpu_config *g,
		     const char *path, struct cq_err *err)
{
	const struct cqd_gpu_config *other;

	if (!strcmp(g->name, "host"))
		return cq_err_set(err, -EINVAL, "%s: [gpu host]: that is the name of the "
				  "machine's own memory", path);
	if (!g->uuid)
		return cq_err_set(err, -EINVAL, "%s: [gpu %s] has no uuid: see nvidia-smi -L",
				  path, g->name);
	if (!uuid_ok(g->uuid))
		return cq_err_set(err, -EINVAL, "%s: [gpu %s] uuid: \"%s\" is not of the form "
				  "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", path, g->name,
				  g->uuid);
	for (other = cfg->gpu; other < g; other++)
		if (!strcasecmp(other->uuid, g->uuid))
			return cq_err_set(err, -EINVAL, "%s: [gpu %s] and [gpu %s] name the same "
					  "uuid", path, other->name, g->name);
	if (!g->pool_bytes.percent && g->pool_bytes.bytes < CQD_HUGE_BYTES)
		return cq_err_set(err, -EINVAL, "%s: [gpu %s] pool_bytes: at least 2M of it "
				  "are needed", path, g->name);
	return 0;
}

/* The socket of its holder: where the unit of that name has it, if nothing is said. */
static int set_holder(struct cqd_gpu_config *g, const char *path, struct cq_err *err)
{
	if (g->sharing != CQD_SHARING_IPC)
		return !g->holder ? 0 : cq_err_set(err, -EINVAL, "%s: [gpu %s] holder: only with "
						   "sharing = ipc", path, g->name);
	if (!g->holder && asprintf(&g->holder, CQP_HOLDER_DIR "/%s.sock", g->name) < 0) {
		g->holder = NULL;
		return cq_err_set(err, -ENOMEM, "out of memory");
	}
	return 0;
}

/**
 * cqd_config_gpus() - check the sections [gpu NAME]
 * @cfg:  configuration, read
 * @path: of the file
 * @err:  what is wrong
 *
 * Return: 0; -EINVAL; -ENOMEM.
 */
int cqd_config_gpus(struct cqd_config *cfg, const char *path, struct cq_err *err)
{
	unsigned int i;
	int ret = 0;

	if (cfg->n_gpus > CQD_MAX_GPUS)
		return cq_err_set(err, -EINVAL, "%s: %u sections [gpu NAME], at most %d", path,
				  cfg->n_gpus, CQD_MAX_GPUS);
	for (i = 0; i < cfg->n_gpus && !ret; i++) {
		ret = check_one(cfg, &cfg->gpu[i], path, err);
		if (!ret)
			ret = set_holder(&cfg->gpu[i], path, err);
	}
	return ret;
}

/**
 * cqd_config_gpus_free() - free the sections [gpu NAME]
 * @cfg: may be half built
 */
void cqd_config_gpus_free(struct cqd_config *cfg)
{
	unsigned int i;

	for (i = 0; i < cfg->n_gpus; i++) {
		free(cfg->gpu[i].name);
		free(cfg->gpu[i].uuid);
		free(cfg->gpu[i].holder);
	}
	free(cfg->gpu);
}

/**
 * cqd_value_sharing() - how workers get at a GPU's segments
 * @s:   "vmm" or "ipc"
 * @out: enum cqd_sharing, set on success
 * @err: what is wrong
 *
 * Return: 0 or -EINVAL.
 */
int cqd_value_sharing(const char *s, uint32_t *out, struct cq_err *err)
{
	if (strcmp(s, "vmm") && strcmp(s, "ipc"))
		return cq_err_set(err, -EINVAL, "\"%s\": there is vmm and ipc", s);
	*out = !strcmp(s, "ipc") ? CQD_SHARING_IPC : CQD_SHARING_VMM;
	return 0;
}

/**
 * cqd_value_bool() - yes or no
 * @s:   text
 * @out: set on success
 * @err: what is wrong
 *
 * Return: 0 or -EINVAL.
 */
int cqd_value_bool(const char *s, uint32_t *out, struct cq_err *err)
{
	if (strcmp(s, "yes") && strcmp(s, "no"))
		return cq_err_set(err, -EINVAL, "\"%s\" is neither yes nor no", s);
	*out = !strcmp(s, "yes");
	return 0;
}
