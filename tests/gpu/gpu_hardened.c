// SPDX-License-Identifier: MIT
/*
 * Does the driver work for a cqd that is as confined as cqd.service has it?
 * What cqd asks of a GPU is asked by a process that has given up the same:
 * the driver started, memory made and exported, no context. A process without
 * restrictions then fills the memory and reads it back.
 *
 *	gpu_hardened [--emulated] [--uuid UUID] [--commit ID] [--confined]
 *	gpu_hardened --list
 *
 * --confined: the service manager has confined this process already, nothing
 * is given up here, and nobody else uses the memory. --list prints the system
 * calls that are refused. Output and exit status are those of gpu_sharing.
 */
#include "tests/gpu/rig.h"
#include "tests/gpu/report.h"
#include "tests/gpu/unit.h"

#define ALL	((1u << ARRAY_SIZE(restrictions)) - 1)
#define BYTES	(4 * GRAN)

static unsigned int wanted;	/* restrictions of the next attempt */
static bool confined;		/* all of us are, by the service manager */

/* What a confined process says before its descriptor: what it could not give up. */
static void own_confined(int sock)
{
	unsigned int missing = restrict_to(wanted);
	cqcu_mem h;
	size_t total;
	int fd;

	start_driver();
	CALL(cuDeviceTotalMem(&total, dev));
	h = mem_new(BYTES);
	fd = mem_export(h);
	CALL(cuMemRelease(h));
	send_fd(sock, fd, &missing, sizeof(missing));
	recv_byte(sock);
}

static void import_and_use(int sock)
{
	int fd = take_fd(sock);
	cqcu_ptr p;

	start();
	p = mem_map(mem_import(fd), BYTES, READWRITE);
	fill(p, BYTES);
	compare(p, BYTES);
}

static void name_them(char *text, size_t n, unsigned int which)
{
	size_t len = 0;

	text[0] = '\0';
	for (unsigned int i = 0; i < ARRAY_SIZE(restrictions) && len < n; i++)
		if (which >> i & 1)
			len += (size_t)snprintf(text + len, n - len, "%s%s", len ? ", " : "",
						restrictions[i].name);
}

static void attempt(void)
{
	struct role owner = role_start(own_confined);
	char names[160], lacks[160];
	unsigned int missing;
	int fd;

	fd = recv_fd(owner.sock, &missing, sizeof(missing));
	if (fd < 0)
		broken("a message has no descriptor");
	/* A confined process says nothing of workers, which are not. */
	if (!confined && !role_try(import_and_use, fd))
		broken("the memory is of no use to others");
	send_byte(owner.sock, 0);
	role_must_end(&owner);
	name_them(names, sizeof(names), wanted & ~missing);
	name_them(lacks, sizeof(lacks), missing);
	conclude(PASSED, "made and exported memory, confined by %s%s%s",
		 confined ? "the service manager" : names, missing ? "; not possible here: " : "",
		 lacks);
}

static bool attempt_with(unsigned int which)
{
	wanted = which;
	found->result = FAILED;
	found->value[0] = '\0';
	return !conduct(attempt) && found->result == PASSED;
}

/* All at once; if that fails, each alone says who is to blame. */
static void try_all(void)
{
	char why[160], names[160];
	unsigned int guilty = 0;

	if (attempt_with(ALL))
		return;
	snprintf(why, sizeof(why), "%.159s", found->value);
	for (unsigned int i = 0; i < ARRAY_SIZE(restrictions); i++)
		if (!attempt_with(1u << i))
			guilty |= 1u << i;
	name_them(names, sizeof(names), guilty);
	conclude(FAILED, "%s; fails with %s alone", why, guilty ? names : "none of them");
}

static int list(void)
{
#ifdef UNIT_DENIED
#define NAME(name) puts(#name);
	UNIT_DENIED(NAME)
#undef NAME
#endif
	return 0;
}

int main(int argc, char **argv)
{
	struct options o;
	int ret;

	if (argc == 2 && !strcmp(argv[1], "--list"))
		return list();
	ret = options_read(argc, argv, &o);
	if (ret)
		return ret;
	confined = o.confined;
	if (confined)
		attempt_with(0);
	else
		try_all();
	report("hardening", o.commit);
	return found->result == FAILED;
}
