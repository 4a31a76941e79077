// SPDX-License-Identifier: MIT
/* cqctl: the administrator's command. This file finds the command. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "client/cqctl/cqctl.h"
#include "cq/stdfds.h"

static const struct ctl_command commands[] = {
	{ "ping", "[--timeout MS]", "ask whether cqd serves",
	  "  --timeout MS          give up after so many milliseconds (10000)\n"
	  "Exit status: 0 it serves, 1 failed, 2 wrong use, 3 no cqd there, 4 it answers\n"
	  "but is not ready, drains or stops, 5 no answer in time.\n"
	  "Works on the workers' socket too: --socket " CQP_DEFAULT_SOCKET "\n",
	  ctl_cmd_ping },
	{ "status", "", "memory, pages, clients and counters of cqd", NULL,
	  ctl_cmd_status },
	{ "list", "[models|namespaces|segments|clients|pages|names]",
	  "what cqd holds; models if nothing is named", NULL, ctl_cmd_list },
	{ "namespaces", "", "the same as list namespaces", NULL, ctl_cmd_list_named },
	{ "clients", "", "the same as list clients", NULL, ctl_cmd_list_named },
	{ "top", "[OPTION...]", "what namespaces and clients do, per second",
	  "  -1, --once            one report, then end\n"
	  "  -b, --batch           reports one below the other, as without a terminal\n"
	  "  -i, --interval MS     between reports (1000)\n"
	  "  -s, --sort KEY        name, bytes (default), pages, pins, lookups, seals,\n"
	  "                        evictions\n", ctl_cmd_top },
	{ "events", "[--namespace NAME] [--snapshot] [--count N]",
	  "what happens, a line each; with --json JSON lines",
	  "  -n, --namespace NAME  of this namespace alone\n"
	  "  --snapshot            first every page that is there\n"
	  "  --count N             end after N events\n"
	  "Works on the workers' sockets too, for their own namespace.\n", ctl_cmd_events },
	{ "metrics", "", "figures in Prometheus' text format", NULL, ctl_cmd_metrics },
	{ "show", "NAME", "one model or namespace in detail", NULL, ctl_cmd_show },
	{ "load", "NAME FILE", "hand a model file to cqd under a name", NULL,
	  ctl_cmd_load },
	{ "unload", "NAME", "drop a model and its pages", NULL, ctl_cmd_unload },
	{ "pin", "NAMESPACE NAME KEY", "keep a page and those before it under a name",
	  "  --ttl TIME     let the name go after TIME: 90s, 15m, 2h, 7d\n"
	  "  --replace      take a name in use over\n"
	  "KEY has 64 hexadecimal digits: see \"cqctl list pages\".\n", ctl_cmd_pin },
	{ "unpin", "NAMESPACE NAME", "take a name away, a worker's too", NULL,
	  ctl_cmd_unpin },
	{ "verify", "[--gpu NAME [--pending]]", "check the checksums of all pages now",
	  "  --gpu NAME  of the pages of section [gpu NAME], which cqd cannot read; here,\n"
	  "              with a context on that GPU\n"
	  "  --pending   only what nobody has looked at since cqd took it over, at the\n"
	  "              verify_rate of cqd.conf\n"
	  "Exit status 1 if a page was wrong.\n", ctl_cmd_verify },
	{ "evict", "[--namespace NAME] [--model NAME] [--older TIME] [--all | --bytes N]",
	  "drop pages that nobody uses",
	  "  --namespace NAME  of this namespace only\n"
	  "  --model NAME      of this model only\n"
	  "  --older TIME      not used for longer than TIME: 90s, 15m, 2h, 7d\n"
	  "  --bytes N         until N bytes are free (k, M, G, T)\n"
	  "  --all             all of them\n"
	  "In the order in which cqd would evict them. What is pinned stays.\n",
	  ctl_cmd_evict },
	{ "quota", "NAME [--bytes N] [--pages N] [--pins N] [--connections N]",
	  "limits of a namespace and what it uses; with options: change them",
	  "A change is in force until the next reload or restart of cqd; 0: no limit.\n"
	  "Above a lowered limit unused pages go; what is in use stays, and nothing\n"
	  "more gets in.\n", ctl_cmd_quota },
	{ "save", "FILE", "write every sealed page to a file",
	  "FILE appears whole or not at all; it is readable by its owner only.\n",
	  ctl_cmd_save },
	{ "restore", "FILE", "bring pages back from a file",
	  "Into namespaces of the same name and models of the same hash. Pages that\n"
	  "are there stay, and nothing is evicted. Exit status 1 if some pages could\n"
	  "not be restored.\n", ctl_cmd_restore },
	{ "drain", "[--timeout SECONDS] [--undo]",
	  "admit no new sessions; wait until no client is left",
	  "  --timeout SECONDS  wait no longer; exit status 1 if clients are left then\n"
	  "  --undo             admit new sessions again\n"
	  "A cqd that is started again admits new sessions.\n", ctl_cmd_drain },
	{ "bench", "[OPTION...]", "measure how fast cqd answers here",
	  "  --clients N       that ask at the same time (4)\n"
	  "  --seconds S       in all (4)\n"
	  "  --namespace NAME  in which pages are sealed; else cqd's choice for your uid\n"
	  "  --model NAME      of which they are; else the first one\n"
	  "Pages are noise, released at once, and dropped when a second is over.\n",
	  ctl_cmd_bench },
	{ "doctor", "", "look at the machine and at cqd, and name remedies",
	  "Works without cqd and for everybody. Exit status 1 if there are problems.\n",
	  ctl_cmd_doctor },
	{ "calibrate", "ACTS --k CODE --v CODE | --budget BITS -o MODEL [OPTION...]",
	  "learn codebooks from an activation dump",
	  "  -o, --output FILE     model file to write\n"
	  "  --k CODE, --v CODE    fp16, or channels and bits: 4c8b, 8c10b. One for all,\n"
	  "                        or a comma-separated list with one per layer\n"
	  "  --budget BITS         choose codings for a mean of so many bits per channel\n"
	  "  --choices LIST        of these (8c8b,4c8b,2c8b)\n"
	  "  --layers LIST         codings of keys and values of single layers:\n"
	  "                        0=2c8b/4c8b,30-31=2c8b/2c8b\n"
	  "  --fisher none|token|channel|both  what squared gradients in the dump weigh\n"
	  "                        (both if there are some)\n"
	  "  --clip QUANTILE       where squared gradients are cut (0.99)\n"
	  "  --centroids i8|f16    how centroids are stored (i8)\n"
	  "  --sinks N             first tokens of a sequence kept in fp16 (4)\n"
	  "  --window N            recent tokens kept in fp16 by their owner (128)\n"
	  "  --iterations N        of k-means, at most (25)\n"
	  "  --starts N            of k-means per codebook, the best is kept (1)\n"
	  "  --threads N           (all CPUs)\n"
	  "  --seed N              (1)\n"
	  "  --resume              go on with MODEL.part, which a run that was ended left\n"
	  "  --rope-scaling WORDS  linear,factor=4, or \"rope_scaling\" of config.json\n"
	  "  --rope-pairs half|interleaved  which channels turn together\n"
	  "Needs no daemon.\n", ctl_cmd_calibrate },
};

static void help(void)
{
	size_t i;

	puts("Usage: cqctl [--socket PATH] [--json] COMMAND [ARGUMENT...]\n"
	     "Talk to cqd, the owner of shared key/value caches.\n");
	for (i = 0; i < ARRAY_SIZE(commands); i++)
		printf("  %-10s %s\n", commands[i].name, commands[i].summary);
	puts("\n"
	     "  --socket PATH  admin socket of cqd ($CQ_ADMIN_SOCKET, else\n"
	     "                 " CQP_DEFAULT_ADMIN ")\n"
	     "  --json         one JSON object on standard output\n"
	     "  --help         this text; \"cqctl COMMAND --help\" for a command\n"
	     "  --version      version\n"
	     "\n"
	     "Exit status: 0 done, 1 failed, 2 wrong use. Manual: cqctl(1).");
}

static const struct ctl_command *find(const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(commands); i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	return NULL;
}

/* An option before the command, at argv[*i]. CTL_GO_ON or the exit status. */
static int leading_option(struct ctl *c, int argc, char **argv, int *i)
{
	const char *arg = argv[*i];

	if (!strcmp(arg, "--help") || !strcmp(arg, "-h")) {
		help();
		return CTL_OK;
	}
	if (!strcmp(arg, "--version")) {
		puts("cqctl " CQ_VERSION);
		return CTL_OK;
	}
	if (!strcmp(arg, "--json")) {
		c->json = true;
		return CTL_GO_ON;
	}
	if (!strncmp(arg, "--socket=", 9)) {
		c->socket = arg + 9;
		return CTL_GO_ON;
	}
	if (strcmp(arg, "--socket"))
		return ctl_usage(c, "unknown option %s", arg);
	if (*i + 1 >= argc)
		return ctl_usage(c, "--socket needs a path");
	c->socket = argv[++*i];
	return CTL_GO_ON;
}

static int run(struct ctl *c, int argc, char **argv)
{
	int i, status;

	for (i = 1; i < argc && argv[i][0] == '-'; i++) {
		status = leading_option(c, argc, argv, &i);
		if (status != CTL_GO_ON)
			return status;
	}
	if (i >= argc)
		return ctl_usage(c, "a command is missing");
	c->cmd = find(argv[i]);
	if (!c->cmd)
		return ctl_usage(c, "unknown command %s", argv[i]);
	return c->cmd->run(c, argc - i - 1, argv + i + 1);
}

int main(int argc, char **argv)
{
	struct ctl c = { .sock = -1, .next_id = 1 };
	int status;

	cq_stdfds_hold();
	status = run(&c, argc, argv);
	ctl_disconnect(&c);
	if (fflush(stdout) || ferror(stdout)) {
		fprintf(stderr, "cqctl: standard output: %s\n", strerror(errno));
		return CTL_FAILED;
	}
	return status;
}
