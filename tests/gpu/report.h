/* SPDX-License-Identifier: MIT */
/*
 * The GPU that is tested, and how the result of a test is told. Include it
 * once, after rig.h.
 */
#ifndef GPU_REPORT_H
#define GPU_REPORT_H

#include <getopt.h>

#define NO_GPU	3	/* exit status */

/* Run @fn in a process of its own, and wait for all that it leaves behind. */
static int conduct(void (*fn)(void))
{
	int status, rest;
	pid_t pid = fork();

	if (pid < 0) {
		snprintf(found->value, sizeof(found->value), "fork: %s", strerror(errno));
		return -1;
	}
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(LIMIT_S);
		fn();
		_exit(0);
	}
	waitpid(pid, &status, 0);
	while (waitpid(-1, &rest, 0) > 0)
		;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
		snprintf(found->value, sizeof(found->value), "nothing within %d s", LIMIT_S);
	else if (WIFSIGNALED(status))
		snprintf(found->value, sizeof(found->value), "killed by signal %d",
			 WTERMSIG(status));
	return status;
}

/* "595.10 (CUDA 13.0)": the first is the kernel module's, and not in containers of all kinds. */
static void driver_text(char *text, size_t n)
{
	FILE *f = fopen("/sys/module/nvidia/version", "re");
	char module[32] = "";
	int version = 0;

	if (f && fscanf(f, "%30s", module) == 1)
		module[strlen(module)] = ' ';	/* the rest is 0 */
	if (f)
		fclose(f);
	CALL(cuDriverGetVersion(&version));
	if (found->gpu.emulated)
		snprintf(text, n, "emulated (CUDA %d.%d)", version / 1000, version % 1000 / 10);
	else
		snprintf(text, n, "%s(CUDA %d.%d)", module, version / 1000, version % 1000 / 10);
}

/* The number in /dev/nvidiaN is the driver's, not CUDA's. */
static void find_node(char *node, size_t n)
{
	char bus[32], path[96], line[128];
	unsigned int minor;
	FILE *f;

	CALL(cuDeviceGetPCIBusId(bus, sizeof(bus), dev));
	for (char *c = bus; *c; c++)
		if (*c >= 'A' && *c <= 'F')
			*c += 'a' - 'A';
	snprintf(path, sizeof(path), "/proc/driver/nvidia/gpus/%s/information", bus);
	f = fopen(path, "re");
	if (!f)
		return;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "Device Minor: %u", &minor) == 1)
			snprintf(node, n, "/dev/nvidia%u", minor);
	fclose(f);
}

/* The GPU whose UUID is given, else the first. */
static void probe(void)
{
	struct tested *g = &found->gpu;

	g->status = cqk_cuda_get(&cu, &g->err);
	if (!g->status && g->uuid[0])
		g->status = cqk_cuda_find(&dev, g->uuid, &g->err);
	if (g->status)
		return;
	if (!g->uuid[0])
		CALL(cuDeviceGet(&dev, 0));
	g->status = cqk_cuda_uuid(dev, g->uuid, &g->err);
	CALL(cuDeviceGetName(g->name, sizeof(g->name), dev));
	CALL(cuDeviceGetAttribute(&g->timeline, CQCU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS,
				dev));
	g->emulated = strstr(g->name, "emulated") != NULL;
	driver_text(g->driver, sizeof(g->driver));
	if (!g->emulated)
		find_node(g->node, sizeof(g->node));
}

static void put_json(const char *key, const char *text)
{
	printf("\"%s\":\"", key);
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			putchar('\\');
		putchar((unsigned char)*text < ' ' ? ' ' : *text);
	}
	printf("\",");
}

static void report(const char *test, const char *commit)
{
	static const char *const results[] = { "fail", "pass", "skip" };
	const struct tested *g = &found->gpu;
	time_t t = time(NULL);
	char date[32];
	struct tm tm;

	strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&t, &tm));
	fprintf(stderr, "%-4s %s  %s%s\n", test, results[found->result],
		g->emulated ? "[emulated] " : "", found->value);
	putchar('{');
	put_json("test", test);
	put_json("result", results[found->result]);
	put_json("value", found->value);
	put_json("device", g->name);
	put_json("uuid", g->uuid);
	put_json("driver", g->driver);
	printf("\"emulated\":%s,", g->emulated ? "true" : "false");
	put_json("date", date);
	printf("\"commit\":\"%s\"}\n", commit);
	fflush(NULL);
}

static int find_gpu(bool emulated)
{
	struct tested *g = &found->gpu;

	if (conduct(probe)) {
		fprintf(stderr, "%s: %s\n", program_invocation_short_name, found->value);
		return 1;
	}
	if (g->status) {
		fprintf(stderr, "%s: %s\n", program_invocation_short_name, g->err.text);
		return g->status == -ENODEV ? NO_GPU : 1;
	}
	if (g->emulated && !emulated) {
		fprintf(stderr, "%s: only the emulation is here\n",
			program_invocation_short_name);
		return NO_GPU;
	}
	if (!g->emulated && emulated) {
		fprintf(stderr, "%s: %s is a GPU: leave --emulated out\n",
			program_invocation_short_name, g->uuid);
		return 2;
	}
	return 0;
}

/**
 * struct options - what a program of make gpu-check is told
 * @emulated: the emulation is wanted, not a GPU
 * @confined: see gpu_hardened
 * @mib:      size of what is shared
 * @commit:   for the report
 * @only:     the one test that is run, or NULL
 */
struct options {
	bool emulated, confined;
	unsigned long mib;
	const char *commit, *only;
};

static bool options_parse(int argc, char **argv, struct options *o)
{
	static const struct option options[] = {
		{ "emulated", no_argument, NULL, 'e' },
		{ "confined", no_argument, NULL, 'n' },
		{ "size", required_argument, NULL, 's' },
		{ "uuid", required_argument, NULL, 'u' },
		{ "commit", required_argument, NULL, 'c' },
		{ "only", required_argument, NULL, 'o' },
		{ NULL, 0, NULL, 0 },
	};
	char *end = NULL;
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == 'e')
			o->emulated = true;
		else if (opt == 'n')
			o->confined = true;
		else if (opt == 's')
			o->mib = strtoul(optarg, &end, 10);
		else if (opt == 'u')
			snprintf(found->gpu.uuid, sizeof(found->gpu.uuid), "%s", optarg);
		else if (opt == 'c')
			o->commit = optarg;
		else if (opt == 'o')
			o->only = optarg;
		else
			return false;
	}
	return optind == argc && !(end && *end) && o->mib >= 8 && o->mib <= 65536 &&
	       o->mib % 2 == 0 && !o->commit[strspn(o->commit, "0123456789abcdef+")];
}

/* The options and the GPU; 0, or the exit status of the program. */
static int options_read(int argc, char **argv, struct options *o)
{
	*o = (struct options){ .mib = 1024, .commit = "" };
	found = mmap(NULL, sizeof(*found), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	if (found == MAP_FAILED || prctl(PR_SET_CHILD_SUBREAPER, 1) < 0) {
		perror(program_invocation_short_name);
		return 1;
	}
	if (!options_parse(argc, argv, o)) {
		fprintf(stderr, "usage: %s [--emulated] [--size MIB] [--uuid UUID] [--commit ID] "
			"[--only TEST]\n", program_invocation_short_name);
		return 2;
	}
	mem_size = o->mib << 20;
	return find_gpu(o->emulated);
}

#endif /* GPU_REPORT_H */
