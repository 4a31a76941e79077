// SPDX-License-Identifier: MIT
/*
 * T1 to T10: what the design takes for granted about memory that processes
 * share on a GPU. Documentation/gpu.md says what stands on each.
 *
 *	gpu_sharing [--emulated] [--size MIB] [--uuid UUID] [--commit ID] [--only TEST]
 *
 * stdout: one line of JSON per test; stderr: the same for people. Exit status:
 * 0, 1 if a test failed, 3 without a GPU. A device of the emulation is taken
 * with --emulated only, and a GPU without it only.
 */
#include "tests/gpu/rig.h"
#include "tests/gpu/report.h"
#include "tests/gpu/life.h"
#include "tests/gpu/use.h"
#include "tests/gpu/attend.h"

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	{ "T1", t1_fd_outlives_owner },
	{ "T2", t2_fd_alone },
	{ "T3", t3_owner_without_context },
	{ "T4", t4_read_only_is_enforced },
	{ "T5", t5_timeline },
	{ "T6", t6_memory_comes_back },
	{ "T7", t7_dup_and_export_again },
	{ "T8", t8_poll_flags },
	{ "T9", t9_two_workers_attend },
	{ "T10", t10_two_mappings },
};

static int run_tests(const struct options *o)
{
	bool good = true;

	fprintf(stderr, "%s, %s, driver %s, %zu MiB\n", found->gpu.name, found->gpu.uuid,
		found->gpu.driver, mem_size >> 20);
	for (size_t i = 0; i < ARRAY_SIZE(tests); i++) {
		if (o->only && strcmp(o->only, tests[i].name))
			continue;
		found->result = FAILED;
		found->value[0] = '\0';
		if (conduct(tests[i].run))
			found->result = FAILED;
		good = good && found->result != FAILED;
		report(tests[i].name, o->commit);
	}
	return good ? 0 : 1;
}

int main(int argc, char **argv)
{
	struct options o;
	int ret = options_read(argc, argv, &o);

	return ret ? ret : run_tests(&o);
}
