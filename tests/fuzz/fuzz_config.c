// SPDX-License-Identifier: MIT
/*
 * Fuzzer of cqd.conf: any bytes as a file. What is taken must be within the
 * limits that the daemon relies on, and a second reading must agree.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "daemon/config.h"

#define MUST(c) do { if (!(c)) { perror(#c); abort(); } } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct cqd_config *cfg)
{
	unsigned int i;

	MUST(cfg->low < cfg->high && cfg->high <= 100);
	MUST(cfg->segment_min <= cfg->segment_max);
	MUST(cfg->pool_bytes.bytes >= cfg->segment_min && !cfg->pool_bytes.percent);
	MUST(cfg->socket[0] == '/' && strlen(cfg->socket) <= 107);
	MUST(cfg->max_pages && cfg->max_clients && cfg->max_pins && cfg->max_connections);
	MUST(cfg->n_ns > 0);
	for (i = 0; i < cfg->n_ns; i++) {
		MUST(cqd_name_ok(cfg->ns[i].name));
		MUST(cqd_config_ns(cfg, cfg->ns[i].name) == &cfg->ns[i]);
		MUST(cfg->ns[i].uid.any || cfg->ns[i].uid.n);
		MUST(cqd_uids_match(&cfg->ns[i].uid, cfg->ns[i].uid.any ? 7 :
				    cfg->ns[i].uid.uid[0]));
	}
	MUST(cfg->n_gpus <= CQD_MAX_GPUS);
	for (i = 0; i < cfg->n_gpus; i++) {
		MUST(cqd_name_ok(cfg->gpu[i].name) && strcmp(cfg->gpu[i].name, "host") &&
		     strlen(cfg->gpu[i].uuid) == 40);
		MUST(cfg->gpu[i].pool_bytes.percent ? cfg->gpu[i].pool_bytes.percent <= 100 :
		     cfg->gpu[i].pool_bytes.bytes >= CQD_HUGE_BYTES);
	}
	for (i = 0; i < cfg->n_models; i++)
		MUST(cqd_name_ok(cfg->model[i].name) && cfg->model[i].path[0] == '/');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cqd_config *cfg, *again, *def;
	struct cq_err err = { "" };
	char path[40];
	int fd, ret;

	fd = memfd_create("conf", MFD_CLOEXEC);
	MUST(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ret = cqd_config_load(path, &cfg, &err);
	if (ret) {
		MUST(err.text[0] && strlen(err.text) < sizeof(err.text));
	} else {
		check(cfg);
		MUST(!cqd_config_load(path, &again, NULL));
		MUST(!cqd_config_fixed(cfg, again));
		MUST(!cqd_config_load(NULL, &def, NULL));
		cqd_config_fixed(def, cfg);
		cqd_config_free(again);
		cqd_config_free(def);
		cqd_config_free(cfg);
	}
	close(fd);
	return 0;
}
