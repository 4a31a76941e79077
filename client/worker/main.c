// SPDX-License-Identifier: MIT
/*
 * cq-worker: command line.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "client/worker/worker.h"

void openblas_set_num_threads(int n);	/* in cblas.h of OpenBLAS only */

enum { TOKENIZE = 1, DUMP = 2, VERIFY = 4, RUN = 8, BENCH = 16, SCORE = 32 };
#define SHARED (VERIFY | RUN | BENCH | SCORE)
#define ALL (SHARED | TOKENIZE | DUMP)

static const struct command {
	const char *name;
	unsigned int bit;
	int (*run)(const struct wk_opts *o);
	const char *help;
} commands[] = {
	{ "tokenize", TOKENIZE, wk_cmd_tokenize, "texts to a file of token ids" },
	{ "dump", DUMP, wk_cmd_dump, "activations for cqctl calibrate" },
	{ "verify", VERIFY, wk_cmd_verify, "the forward pass against reference logits" },
	{ "run", RUN, wk_cmd_run, "read a prompt, attached where possible, and generate" },
	{ "bench", BENCH, wk_cmd_bench, "time to first token, cold and attached" },
	{ "score", SCORE, wk_cmd_score, "quality of an attached reader against another model" },
};

enum type { TEXT, COUNT, NUMBER, SWITCH };

static const struct option_def {
	const char *name;
	enum type type;
	size_t at;
	unsigned int commands;	/* that take it */
	unsigned int needed;	/* by these of them */
	const char *help;
} options[] = {
#define O(field) offsetof(struct wk_opts, field)
	{ "lm", TEXT, O(lm), ALL, 0, "DIR  the language model (client/worker/lm)" },
	{ "threads", COUNT, O(threads), ALL, 0, "N  of the matrix products (1)" },
	{ "chunk", COUNT, O(chunk), ALL & ~TOKENIZE, 0, "N  rows computed at once (256)" },
	{ "socket", TEXT, O(socket), SHARED, 0,
	  "PATH  cqd's socket ($CQ_SOCKET, /run/cq/cqd.sock)" },
	{ "model", TEXT, O(model), SHARED, SHARED & ~VERIFY, "NAME  as loaded with cqctl" },
	{ "gpu", TEXT, O(gpu), SHARED, 0, "UUID  attend on that GPU, --reference excepted" },
	{ "name", TEXT, O(name), SHARED, 0, "NAME  shown by cqctl (cq-worker)" },
	{ "out", TEXT, O(out), TOKENIZE | DUMP, TOKENIZE | DUMP, "FILE  to write" },
	{ "limit", COUNT, O(limit), TOKENIZE, 0, "N  tokens at most, and at least" },
	{ "ids", TEXT, O(ids), DUMP | SCORE, DUMP | SCORE,
	  "FILE  token ids, little-endian uint16" },
	{ "sequences", COUNT, O(sequences), DUMP | SCORE, 0, "N  of the file (16; score 8)" },
	{ "length", COUNT, O(length), DUMP | SCORE, 0, "N  tokens of each (2048; score 256)" },
	{ "skip", COUNT, O(skip), SCORE, 0, "N  tokens of the file first (0)" },
	{ "tolerance", NUMBER, O(tolerance), VERIFY, 0, "X  largest error of a logit (0.001)" },
	{ "prefix", TEXT, O(prefix), RUN | BENCH | SCORE, BENCH | SCORE,
	  "FILE  token ids of the prefix" },
	{ "ask", TEXT, O(ask), RUN | BENCH, 0, "TEXT  goes behind the prefix" },
	{ "generate", COUNT, O(generate), RUN | BENCH, 0, "N  tokens (64)" },
	{ "temperature", NUMBER, O(temperature), RUN, 0, "X  0 is greedy (0)" },
	{ "seed", COUNT, O(seed), RUN, 0, "N  of the sampling (1)" },
	{ "pace", COUNT, O(pace), RUN, 0, "MS  between tokens, as for a reader (0)" },
	{ "hold", SWITCH, O(hold), RUN, 0, "  keep the sequence until standard input ends" },
	{ "nomatch", SWITCH, O(nomatch), RUN | BENCH | SCORE, 0, "  attach to nothing" },
	{ "private", SWITCH, O(private), RUN, 0, "  publish nothing" },
	{ "publish", TEXT, O(publish), RUN, 0, "NAME  hand the sequence over when done" },
	{ "attach", TEXT, O(attach), RUN, 0, "NAME  go on with a published sequence" },
	{ "repeat", COUNT, O(repeat), BENCH, 0, "N  attached runs, a third of them cold (15)" },
	{ "published", SWITCH, O(published), SCORE, 0, "  publish the continuations too" },
	{ "reference", TEXT, O(reference), SCORE, SCORE, "NAME  model to compare with" },
	{ "kl", TEXT, O(kl), SCORE, 0, "FILE  gets \"KL same-top-token\" per position" },
#undef O
};

#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))
#define N_OPTIONS (sizeof(options) / sizeof(options[0]))

static void usage(FILE *f)
{
	size_t i;

	fputs("usage: cq-worker COMMAND [OPTION...]\n\n"
	      "The reference worker of cq: a small language model on libcq.\n\n", f);
	for (i = 0; i < N_COMMANDS; i++)
		fprintf(f, "  %-9s %s\n", commands[i].name, commands[i].help);
	fputs("\ncq-worker COMMAND --help lists its options. Results are JSON on"
	      " standard output.\nExit status: 0; 1 it failed, the reason is on"
	      " standard error; 2 usage.\n", f);
}

static void command_usage(const struct command *cmd)
{
	size_t i;

	printf("usage: cq-worker %s [OPTION...]%s\n\n%s\n\n", cmd->name,
	       cmd->bit == TOKENIZE ? " TEXTFILE..." : "", cmd->help);
	for (i = 0; i < N_OPTIONS; i++)
		if (options[i].commands & cmd->bit)
			printf("  --%s %s\n", options[i].name, options[i].help);
}

static int set_option(struct wk_opts *o, const struct option_def *def, const char *arg)
{
	void *field = (char *)o + def->at;
	char *end = NULL;

	errno = 0;
	switch (def->type) {
	case TEXT:
		*(const char **)field = arg;
		return 0;
	case SWITCH:
		*(bool *)field = true;
		return 0;
	case COUNT:
		*(uint64_t *)field = strtoull(arg, &end, 10);
		if (errno || end == arg || *end || *arg == '-' ||
		    *(uint64_t *)field > 1u << 30)
			break;
		return 0;
	case NUMBER:
		*(double *)field = strtod(arg, &end);
		if (errno || end == arg || *end || !(*(double *)field >= 0))
			break;
		return 0;
	}
	return wk_error(-EINVAL, "--%s %s: not a number that makes sense", def->name, arg);
}

static int check_needed(const struct wk_opts *o, const struct command *cmd)
{
	const void *field;
	size_t i;

	for (i = 0; i < N_OPTIONS; i++) {
		field = (const char *)o + options[i].at;
		if (options[i].needed & cmd->bit && !*(const char *const *)field)
			return wk_error(-EINVAL, "%s needs --%s %s", cmd->name,
					options[i].name, options[i].help);
	}
	if (!o->n_args && cmd->bit == TOKENIZE)
		return wk_error(-EINVAL, "tokenize needs texts");
	return 0;
}

/* 0: go on; 1: help was printed; -EINVAL. */
static int parse(struct wk_opts *o, const struct command *cmd, int argc, char **argv)
{
	struct option longopts[N_OPTIONS + 2] = { { 0 } };
	size_t i, n = 0;
	int c;

	for (i = 0; i < N_OPTIONS; i++)
		if (options[i].commands & cmd->bit)
			longopts[n++] = (struct option){ options[i].name,
				options[i].type == SWITCH ? no_argument :
				required_argument, NULL, (int)i + 256 };
	longopts[n] = (struct option){ "help", no_argument, NULL, 'h' };
	while ((c = getopt_long(argc, argv, "h", longopts, NULL)) != -1) {
		if (c == 'h') {
			command_usage(cmd);
			return 1;
		}
		if (c < 256 || set_option(o, &options[c - 256], optarg))
			return -EINVAL;
	}
	o->args = argv + optind;
	o->n_args = argc - optind;
	if (o->n_args && cmd->bit != TOKENIZE)
		return wk_error(-EINVAL, "%s: what is that?", o->args[0]);
	if (!o->chunk || !o->threads || !o->generate)
		return wk_error(-EINVAL, "--chunk, --threads and --generate are at least 1");
	return check_needed(o, cmd);
}

/* @status, unless what was printed got lost. */
static int done(int status)
{
	if (!fflush(stdout) && !ferror(stdout))
		return status;
	wk_error(-EIO, "cannot write to standard output");
	return 1;
}

int main(int argc, char **argv)
{
	struct wk_opts o = {
		.lm = "client/worker/lm", .name = "cq-worker", .sequences = 16,
		.length = 2048, .generate = 64, .repeat = 15, .chunk = 256,
		.threads = 1, .seed = 1, .tolerance = 1e-3,
	};
	size_t i;
	int ret;

	if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
		usage(stdout);
		return done(0);
	}
	for (i = 0; i < N_COMMANDS; i++)
		if (argc > 1 && !strcmp(argv[1], commands[i].name))
			break;
	if (i == N_COMMANDS) {
		usage(stderr);
		return 2;
	}
	if (commands[i].bit == SCORE) {
		o.sequences = 8;
		o.length = 256;
	}
	ret = parse(&o, &commands[i], argc - 1, argv + 1);
	if (ret)
		return ret < 0 ? 2 : done(0);
	openblas_set_num_threads((int)o.threads);
	return done(commands[i].run(&o) ? 1 : 0);
}
