// SPDX-License-Identifier: MIT
/*
 * cq-holder - owner of the memory of one GPU for cqd (sharing = ipc).
 *
 * Memory that is shared by legacy handles belongs to a process and its context, and is
 * gone with it. This one does nothing else, so that cqd may end and come back.
 * cq-holder.8 is the manual.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sysexits.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>
#include "cq/log.h"
#include "cq/stdfds.h"
#include "daemon/bind.h"
#include "daemon/config.h"
#include "daemon/holder/holder.h"

struct options {
	const char *config, *name;
};

static struct ch_server server;	/* large: not on the stack */

static void usage(void)
{
	puts("Usage: cq-holder [OPTION...] NAME\n"
	     "Own the memory of the GPU of section [gpu NAME] of cqd.conf for cqd.\n"
	     "\n"
	     "  -c, --config FILE  configuration (default " CQD_DEFAULT_CONFIG ")\n"
	     "  -h, --help         this text\n"
	     "      --version      version\n"
	     "\n"
	     "Manual: cq-holder(8), cqd.conf(5).");
}

/* Exit status of what is answered at once, or -1 to go on. */
static int parse_options(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "config", required_argument, NULL, 'c' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "c:h", longs, NULL)) >= 0) {
		switch (c) {
		case 'c':
			o->config = optarg;
			break;
		case 'h':
			usage();
			return EXIT_SUCCESS;
		case 'V':
			puts("cq-holder " CQ_VERSION);
			return EXIT_SUCCESS;
		default:
			return EX_USAGE;
		}
	}
	if (optind != argc - 1) {
		cq_err("name one section [gpu NAME]; see cq-holder --help");
		return EX_USAGE;
	}
	o->name = argv[optind];
	return -1;
}

static const struct cqd_gpu_config *section(const struct cqd_config *cfg,
					    const struct options *o)
{
	unsigned int i;

	for (i = 0; i < cfg->n_gpus; i++)
		if (!strcmp(cfg->gpu[i].name, o->name))
			break;
	if (i == cfg->n_gpus) {
		cq_err("%s has no section [gpu %s]", o->config, o->name);
		return NULL;
	}
	if (cfg->gpu[i].sharing != CQD_SHARING_IPC) {
		cq_err("[gpu %s] of %s needs no holder: it has not sharing = ipc", o->name,
		       o->config);
		return NULL;
	}
	return &cfg->gpu[i];
}

/* They are read, not handled: a driver call is never cut short. */
static int block_signals(struct cq_err *err)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_CLOEXEC);
	return fd < 0 ? cq_err_set(err, -errno, "signalfd: %s", strerror(errno)) : fd;
}

/* The socket last: whoever finds it finds a GPU behind it. */
static int start(struct ch_server *s, const struct cqd_gpu_config *g, struct cq_err *err)
{
	int ret = block_signals(err);

	if (ret < 0)
		return ret;
	s->signals = ret;
	s->name = g->name;
	if (getrandom(&s->boot, sizeof(s->boot), 0) != (ssize_t)sizeof(s->boot))
		return cq_err_set(err, -errno, "getrandom: %s", strerror(errno));
	s->boot |= 1;	/* never 0 */
	ret = ch_device_open(&s->dev, g->uuid, err);
	if (ret)
		return ret;
	return cqd_bind_unix(g->holder, SOCK_SEQPACKET, 0600, CH_CONNS, &s->listener, err);
}

static int run(struct ch_server *s, const struct cqd_gpu_config *g)
{
	struct cq_err err = { "" };
	int ret = start(s, g, &err);

	if (ret) {
		cq_err("[gpu %s] %s", g->name, err.text);
		return EXIT_FAILURE;
	}
	cq_info("cq-holder " CQ_VERSION " holds memory of %s, %llu MiB, at %s", s->dev.uuid,
		(unsigned long long)(s->dev.bytes >> 20), g->holder);
	sd_notify(0, "READY=1");
	ret = ch_serve(s);
	sd_notify(0, "STOPPING=1");
	unlink(g->holder);
	if (s->blocks.n)
		cq_warn("[gpu %s] ends with %u blocks, %llu MiB: the pages in them are lost",
			g->name, s->blocks.n,
			(unsigned long long)(ch_blocks_bytes(&s->blocks) >> 20));
	if (ret)
		cq_err("[gpu %s] %s: a new process may go on", g->name, strerror(-ret));
	/* The driver takes the memory back: others may have it open still. */
	return ret ? EXIT_FAILURE : EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	struct options o = { .config = CQD_DEFAULT_CONFIG };
	const struct cqd_gpu_config *g;
	struct cqd_config *cfg;
	struct cq_err err = { "" };
	int ret;

	cq_stdfds_hold();
	ret = parse_options(argc, argv, &o);
	if (ret >= 0)
		return ret;
	if (cqd_config_load(o.config, &cfg, &err)) {
		cq_err("%s", err.text);
		return EX_CONFIG;
	}
	g = section(cfg, &o);
	ret = g ? run(&server, g) : EX_CONFIG;
	cqd_config_free(cfg);
	return ret;
}
