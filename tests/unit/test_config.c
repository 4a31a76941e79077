// SPDX-License-Identifier: MIT
/* cqd.conf: what is taken, and what is refused with which file and line. */
#include <errno.h>
#include <fcntl.h>
#include "daemon/config.h"
#include "tests/harness.h"

static char path[64];

static const char *write_conf(const char *text)
{
	int fd;

	snprintf(path, sizeof(path), "/tmp/cq-conf-%d", (int)getpid());
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	ASSERT(fd >= 0);
	ASSERT_EQ(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
	return path;
}

static struct cqd_config *load(const char *text)
{
	struct cqd_config *cfg = NULL;
	struct cq_err err = { "" };
	int ret = cqd_config_load(write_conf(text), &cfg, &err);

	unlink(path);
	if (ret)
		FAIL("%s", err.text);
	return cfg;
}

/* The text must name the line and hold @what; nothing may be returned. */
static void refused(const char *text, unsigned int line, const char *what)
{
	struct cqd_config *cfg = NULL;
	struct cq_err err = { "" };
	char at[80];
	int ret = cqd_config_load(write_conf(text), &cfg, &err);

	unlink(path);
	ASSERT_EQ(ret, -EINVAL);
	ASSERT(!cfg);
	snprintf(at, sizeof(at), line ? "%s:%u: " : "%s: ", path, line);
	if (strncmp(err.text, at, strlen(at)) || !strstr(err.text, what))
		FAIL("\"%s\" wants \"%s\" and \"%s\"", err.text, at, what);
}

TEST(defaults)
{
	struct cqd_config *cfg = NULL;

	ASSERT_EQ(cqd_config_load(NULL, &cfg, NULL), 0);
	ASSERT(!strcmp(cfg->socket, "/run/cq/cqd.sock"));
	ASSERT(!strcmp(cfg->admin_socket, "/run/cq/admin.sock"));
	ASSERT_EQ(cfg->socket_mode, 0660);
	ASSERT_EQ(cfg->segment_min, 16 << 20);
	ASSERT(cfg->pool_bytes.bytes > cfg->segment_min);
	ASSERT_EQ(cfg->half_life_s, 600);
	ASSERT_EQ(cfg->pressure_us, 0);
	ASSERT_EQ(cfg->ns[0].priority_max, 255);
	ASSERT_EQ(cfg->n_ns, 1);
	ASSERT(!strcmp(cfg->ns[0].name, "default"));
	ASSERT(cqd_uids_match(&cfg->ns[0].uid, 12345));
	cqd_config_free(cfg);
}

TEST(every_key)
{
	struct cqd_config *cfg = load(
		"# comment\n; comment\n\n[daemon]\n"
		"socket = /tmp/a.sock\nadmin_socket=/tmp/b.sock\nsocket_mode = 0600\n"
		"pool_bytes = 64M\nmax_pages = 1000\nmax_clients = 10\nmax_pins = 20\n"
		"segment_min = 1M\nsegment_max = 8M ; inline comment\nlow = 50\nhigh = 60\n"
		"verify_rate = 1G\npersist = /tmp/p\npersist_rate = 3M\n"
		"backend = memfd\nmax_connections = 7\nuid_connections = 3\n"
		"[namespace alpha]\nuid = 0, 1000 daemon\nsocket = /tmp/c.sock\n"
		"quota_bytes = 50%\nquota_pages = 11\nquota_pins = 12\nconnections = 13\n"
		"salt = some text\nmodels = m1, m2\nreadable_by = beta\n"
		"[namespace beta]\nuid = *\nsalt = some text\n"
		"[model m1]\npath = /tmp/m1.safetensors\n");
	const struct cqd_ns_config *ns = cqd_config_ns(cfg, "alpha");

	ASSERT(!strcmp(cfg->socket, "/tmp/a.sock"));
	ASSERT(!strcmp(cfg->admin_socket, "/tmp/b.sock"));
	ASSERT_EQ(cfg->socket_mode, 0600);
	ASSERT_EQ(cfg->pool_bytes.bytes, 64 << 20);
	ASSERT_EQ(cfg->max_pages, 1000);
	ASSERT_EQ(cfg->max_clients, 10);
	ASSERT_EQ(cfg->max_pins, 20);
	ASSERT_EQ(cfg->segment_min, 1 << 20);
	ASSERT_EQ(cfg->segment_max, 8 << 20);
	ASSERT_EQ(cfg->low, 50);
	ASSERT_EQ(cfg->high, 60);
	ASSERT_EQ(cfg->verify_rate, 1 << 30);
	ASSERT(!strcmp(cfg->persist, "/tmp/p"));
	ASSERT_EQ(cfg->persist_rate, 3 << 20);
	ASSERT(!strcmp(cfg->backend, "memfd"));
	ASSERT_EQ(cfg->max_connections, 7);
	ASSERT_EQ(cfg->uid_connections, 3);
	ASSERT_EQ(cfg->n_ns, 2);
	ASSERT(cqd_uids_match(&ns->uid, 0) && cqd_uids_match(&ns->uid, 1000));
	ASSERT(cqd_uids_match(&ns->uid, 1));	/* daemon */
	ASSERT(!cqd_uids_match(&ns->uid, 2));
	ASSERT(!strcmp(ns->socket, "/tmp/c.sock"));
	ASSERT_EQ(ns->quota_bytes.bytes / (1 << 20), 31);	/* 50 % of 64M, by hundredths */
	ASSERT_EQ(ns->quota_pages, 11);
	ASSERT_EQ(ns->quota_pins, 12);
	ASSERT_EQ(ns->connections, 13);
	ASSERT(!strcmp(ns->salt, "some text"));
	ASSERT_EQ(ns->models.n, 2);
	ASSERT(!strcmp(ns->models.name[1], "m2"));
	ASSERT_EQ(ns->readable_by.n, 1);
	ASSERT(!strcmp(ns->readable_by.name[0], "beta"));
	ASSERT(!cqd_config_ns(cfg, "gamma"));
	ASSERT_EQ(cfg->n_models, 1);
	ASSERT(!strcmp(cfg->model[0].path, "/tmp/m1.safetensors"));
	cqd_config_free(cfg);
}

#define UUID_A "GPU-00112233-4455-6677-8899-aabbccddeeff"
#define UUID_B "MIG-00112233-4455-6677-8899-AABBCCDDEE00"
#define UUID_C "GPU-00112233-4455-6677-8899-aabbccddee01"
#define UUID_D "GPU-00112233-4455-6677-8899-aabbccddee02"

TEST(gpus)
{
	struct cqd_config *cfg = load("[gpu g0]\nuuid = " UUID_A "\npool_bytes = 4G\n"
				      "sharing = vmm\ntrust_readers = yes\n"
				      "[gpu g1]\nuuid = " UUID_B "\npool_bytes = 50%\n"
				      "[gpu g2]\nuuid = " UUID_C "\npool_bytes = 2M\n"
				      "sharing = ipc\n"
				      "[gpu g3]\nuuid = " UUID_D "\npool_bytes = 2M\n"
				      "holder = /tmp/h.sock\nsharing = ipc\n");
	char text[4096] = "";
	unsigned int i;

	ASSERT_EQ(cfg->n_gpus, 4);
	ASSERT(!cfg->gpu[0].holder);
	ASSERT_EQ(cfg->gpu[2].sharing, CQD_SHARING_IPC);
	ASSERT_STREQ(cfg->gpu[2].holder, "/run/cq-holder/g2.sock");
	ASSERT_STREQ(cfg->gpu[3].holder, "/tmp/h.sock");
	ASSERT_STREQ(cfg->gpu[0].name, "g0");
	ASSERT_STREQ(cfg->gpu[0].uuid, UUID_A);
	ASSERT_EQ(cfg->gpu[0].pool_bytes.bytes, 4ull << 30);
	ASSERT_EQ(cfg->gpu[0].trust_readers, 1);
	ASSERT_EQ(cfg->gpu[1].pool_bytes.percent, 50);
	ASSERT_EQ(cfg->gpu[1].sharing, CQD_SHARING_VMM);
	ASSERT_EQ(cfg->gpu[1].trust_readers, 0);
	cqd_config_free(cfg);

	refused("[gpu g]\npool_bytes = 1G\n", 0, "no uuid");
	refused("[gpu g]\nuuid = GPU-0\npool_bytes = 1G\n", 0, "not of the form");
	refused("[gpu g]\nuuid = GPU-00112233-4455-6677-8899-aabbccddeefg\npool_bytes = 1G\n",
		0, "not of the form");
	refused("[gpu g]\nuuid = XPU-00112233-4455-6677-8899-aabbccddeeff\npool_bytes = 1G\n",
		0, "not of the form");
	refused("[gpu g]\nuuid = " UUID_A "\n", 0, "pool_bytes");
	refused("[gpu g]\nuuid = " UUID_A "\npool_bytes = 1M\n", 0, "at least 2M");
	refused("[gpu host]\nuuid = " UUID_A "\npool_bytes = 1G\n", 0, "machine's own");
	refused("[gpu g]\nuuid = " UUID_A "\npool_bytes = 1G\n"
		"[gpu h]\nuuid = gpu-00112233-4455-6677-8899-AABBCCDDEEFF\npool_bytes = 1G\n",
		0, "the same uuid");
	refused("[gpu g]\nsharing = both\n", 2, "there is vmm and ipc");
	refused("[gpu g]\nuuid = " UUID_A "\npool_bytes = 1G\nholder = /tmp/h.sock\n", 0,
		"only with sharing = ipc");
	refused("[gpu g]\ntrust_readers = maybe\n", 2, "neither yes nor no");
	refused("[gpu g]\nuuid = " UUID_A "\npool_bytes = 1G\n[gpu g]\n", 4,
		"already has a section");
	refused("[gpu ]\n", 1, "bad name");
	for (i = 0; i <= CQD_MAX_GPUS; i++)
		snprintf(text + strlen(text), sizeof(text) - strlen(text), "[gpu g%u]\nuuid = "
			 "GPU-00112233-4455-6677-8899-%012x\npool_bytes = 2M\n", i, i);
	refused(text, 0, "at most 16");
}

/* Who reads must exist, be somebody else and derive the same keys. */
TEST(readers)
{
	char text[1200] = "[namespace r]\nuid = 1\n", one[64];
	int i;

	refused("[namespace a]\nuid = 1\nreadable_by = b\n", 0, "there is no [namespace b]");
	refused("[namespace a]\nuid = 1\nreadable_by = a\n", 0, "names itself");
	refused("[namespace a]\nuid = 1\nreadable_by = b\n[namespace b]\nuid = 2\n"
		"salt = x\n", 0, "another salt");
	refused("[namespace a]\nuid = 1\nsalt = y\nreadable_by = b\n[namespace b]\nuid = 2\n"
		"salt = x\n", 0, "another salt");
	for (i = 0; i <= CQD_MAX_READS; i++) {
		snprintf(one, sizeof(one), "[namespace n%d]\nuid = 1\nreadable_by = r\n", i);
		if (i == CQD_MAX_READS)
			cqd_config_free(load(text));
		strncat(text, one, sizeof(text) - strlen(text) - 1);
	}
	refused(text, 0, "more than 8");
}

TEST(lines)
{
	char text[600];

	refused("[daemon]\nsockt = /tmp/x\n", 2, "unknown key \"sockt\" in [daemon]");
	refused("[demon]\n", 1, "unknown section");
	refused("[namespace]\n", 1, "unknown section");
	refused("[namespace a/b]\n", 1, "bad name");
	refused("[namespace .a]\n", 1, "bad name");
	refused("low = 1\n", 1, "before the first section");
	refused("\n\n[daemon]\nlow 5\n", 4, "neither [section] nor key = value");
	refused("[daemon\n", 1, "without its ]");
	refused("[daemon] low\n", 1, "text after");
	refused("[daemon]\nlow = 5\nlow = 6\n", 3, "set twice");
	refused("[daemon]\nlow=5\n\n[daemon]\nhigh=7\n", 4, "there already");
	refused("[namespace a]\nuid=*\n[namespace a]\n", 3, "already has a section");
	refused("[model a]\npath=/x\n[model a]\n", 3, "already has a section");
	snprintf(text, sizeof(text), "[daemon]\n\n# %0300d\n", 0);
	refused(text, 3, "too long");
	snprintf(text, sizeof(text), "[namespace a]\nuid = *\nsalt = %0190d\n", 0);
	cqd_config_free(load(text));
	snprintf(text, sizeof(text), "[namespace a]\nuid = *\nsalt = %0193d\n", 0);
	refused(text, 3, "too long");
	snprintf(text, sizeof(text), "[namespace %063d]\nuid = *\n", 1);
	cqd_config_free(load(text));
	snprintf(text, sizeof(text), "[namespace %064d]\nuid = *\n", 1);
	refused(text, 1, "bad name");
}

TEST(values)
{
	refused("[daemon]\nlow = five\n", 2, "low: \"five\" is not a whole number");
	refused("[daemon]\nlow = -5\n", 2, "not a whole number");
	refused("[daemon]\nlow = 100\n", 2, "outside 1 to 99");
	refused("[daemon]\nlow =\n", 2, "not a whole number");
	refused("[daemon]\nmax_pages = 99999999999999999999999\n", 2, "not a whole number");
	refused("[daemon]\nmax_pages = 4294967296\n", 2, "outside");
	refused("[daemon]\npool_bytes = 1X\n", 2, "unknown unit");
	refused("[daemon]\npool_bytes = 1Mi\n", 2, "unknown unit");
	refused("[daemon]\npool_bytes = 101%\n", 2, "outside 1% to 100%");
	refused("[daemon]\npool_bytes = 0%\n", 2, "outside 1% to 100%");
	refused("[daemon]\npool_bytes = 99999999999T\n", 2, "64 bits");
	refused("[daemon]\nsegment_min = 5%\n", 2, "no percentage");
	refused("[daemon]\nsegment_min = 1k\n", 2, "outside");
	refused("[daemon]\nsocket_mode = 0888\n", 2, "octal");
	refused("[daemon]\nsocket_mode = 7777\n", 2, "over 0777");
	refused("[daemon]\nsocket = cqd.sock\n", 2, "absolute path");
	refused("[daemon]\nsocket =\n", 2, "no value");
	refused("[daemon]\nmetrics_listen = localhost:9464\n", 2, "no address and port");
	refused("[daemon]\nmetrics_listen = 127.0.0.1\n", 2, "no address and port");
	refused("[daemon]\nmetrics_listen = [::1:9464\n", 2, "no address and port");
	refused("[daemon]\nmetrics_listen = ::1:0\n", 2, "no address and port");
	refused("[daemon]\nmetrics_listen = 127.0.0.1:65536\n", 2, "no address and port");
	cqd_config_free(load("[daemon]\nmetrics_listen = [::1]:9464\n"));
	cqd_config_free(load("[daemon]\nmetrics_listen = 0.0.0.0:65535\n"));
	refused("[namespace a]\nuid = no-such-user-here\n", 2, "no user");
	refused("[namespace a]\nuid = 4294967295\n", 2, "outside");
	refused("[namespace a]\nuid =\n", 2, "no uid");
	refused("[namespace a]\nuid = *\nmodels = a b/c\n", 3, "bad name \"b/c\"");
	refused("[daemon]\nlow = 1 # no comment\n", 2, "not a whole number");
}

TEST(whole_file)
{
	refused("[daemon]\nlow = 60\nhigh = 60\n", 0, "less than high");
	refused("[daemon]\nsegment_min = 8M\nsegment_max = 4M\n", 0, "segment_min");
	refused("[daemon]\nsegment_min = 100001\n", 0, "multiples of 4k");
	refused("[daemon]\npool_bytes = 1M\n", 0, "less than one segment");
	refused("[daemon]\nsocket = /a\nadmin_socket = /a\n", 0, "the same");
	refused("[daemon]\nmetrics_socket = /run/cq/cqd.sock\n", 0, "path of its own");
	refused("[namespace a]\nconnections = 1\n", 0, "has no uid");
	refused("[namespace a]\nuid = *\nsocket = /run/cq/cqd.sock\n", 0, "one of [daemon]'s");
	refused("[daemon]\nmetrics_socket = /m\n[namespace a]\nuid = *\nsocket = /m\n", 0,
		"one of [daemon]'s");
	refused("[namespace a]\nuid = *\nsocket = /s\n[namespace b]\nuid = *\nsocket = /s\n",
		0, "[namespace b] socket is that of [namespace a]");
	refused("[model a]\n", 0, "has no path");
}

/* The installed file: every key is there, with its default and a comment. */
TEST(installed_file)
{
	struct cqd_config *cfg = NULL, *def = NULL;
	char line[256], text[8192];
	size_t n = 0;
	bool gpu = false;
	struct cq_err err = { "" };
	FILE *f = fopen("systemd/cqd.conf", "re");

	if (!f)
		SKIP("not run from the top of the repository");
	ASSERT_OK(cqd_config_load("systemd/cqd.conf", &cfg, &err));
	ASSERT_OK(cqd_config_load(NULL, &def, &err));
	ASSERT(!cqd_config_fixed(cfg, def));
	cqd_config_free(cfg);
	/* what is commented out is the default, too, but for GPUs, which have none */
	while (fgets(line, sizeof(line), f)) {
		if (!strncmp(line, "#[", 2))
			gpu = !strncmp(line, "#[gpu", 5);
		if (!gpu && line[0] == '#' && strchr(line, '=') && line[1] >= 'a' &&
		    line[1] <= 'z' && !strstr(line, "NAME") && !strstr(line, "TEXT") &&
		    !strstr(line, "PATH") && !strstr(line, "PORT") &&
		    !strstr(line, "FOLDER"))
			memmove(line, line + 1, strlen(line));
		else if (!strncmp(line, "#[namespace", 11))
			snprintf(line, sizeof(line), "[namespace n]\n");
		n += (size_t)snprintf(text + n, sizeof(text) - n, "%s", line);
		ASSERT_LT(n, sizeof(text));
	}
	fclose(f);
	cfg = load(text);
	ASSERT(!cqd_config_fixed(def, cfg));
	ASSERT_EQ(cfg->max_connections, def->max_connections);
	ASSERT_EQ(cfg->uid_connections, def->uid_connections);
	ASSERT_EQ(cfg->n_ns, 1);
	ASSERT(cfg->ns[0].uid.any);
	cqd_config_free(cfg);
	cqd_config_free(def);
}

TEST(missing_file)
{
	struct cqd_config *cfg = NULL;
	struct cq_err err = { "" };

	ASSERT_EQ(cqd_config_load("/nonexistent/cqd.conf", &cfg, &err), -ENOENT);
	ASSERT(strstr(err.text, "/nonexistent/cqd.conf"));
	ASSERT(cqd_config_load("/tmp", &cfg, &err) < 0);
	ASSERT(!cfg);
}

TEST(nul_byte)
{
	static const char text[] = "[daemon]\nlow = 1\0002\n";
	struct cqd_config *cfg = NULL;
	struct cq_err err = { "" };
	int fd;

	write_conf("");
	fd = open(path, O_WRONLY | O_CLOEXEC);
	ASSERT_EQ(write(fd, text, sizeof(text) - 1), (ssize_t)sizeof(text) - 1);
	close(fd);
	ASSERT_EQ(cqd_config_load(path, &cfg, &err), -EINVAL);
	unlink(path);
	ASSERT(strstr(err.text, ":2: "));
}

/* What is a share of the pool stays one when the file's pool is not yet in force. */
TEST(pool_in_force)
{
	struct cqd_config *cfg = load("[daemon]\npool_bytes=1G\nsegment_min=1M\n"
				      "[namespace a]\nuid=*\nquota_bytes=50%\n"
				      "[namespace b]\nuid=*\nquota_bytes=5M\n"
				      "[namespace c]\nuid=*\n");

	ASSERT_EQ(cfg->ns[0].quota_bytes.bytes, (1ull << 30) / 100 * 50);
	cqd_config_pool(cfg, 100 << 20);
	ASSERT_EQ(cfg->pool_bytes.bytes, 100 << 20);
	ASSERT_EQ(cfg->ns[0].quota_bytes.bytes, 50 << 20);
	ASSERT_EQ(cfg->ns[1].quota_bytes.bytes, 5 << 20);
	ASSERT_EQ(cfg->ns[2].quota_bytes.bytes, 0);
	cqd_config_free(cfg);
}

TEST(reload)
{
	struct cqd_config *a = load("[daemon]\npool_bytes=1G\n[namespace a]\nuid=*\nsalt=x\n");
	struct cqd_config *b = load("[daemon]\npool_bytes=1G\nmax_connections=9\n"
				    "[namespace a]\nuid=1\nquota_pages=5\nsalt=x\n");
	struct cqd_config *c = load("[daemon]\npool_bytes=2G\n[namespace a]\nuid=*\nsalt=x\n");
	struct cqd_config *d = load("[daemon]\npool_bytes=1G\n[namespace a]\nuid=*\nsalt=y\n");
	struct cqd_config *e = load("[daemon]\npool_bytes=1G\n[namespace a]\nuid=*\nsalt=x\n"
				    "[namespace b]\nuid=*\nsocket=/tmp/b\n");
	struct cqd_config *f = load("[daemon]\npool_bytes=1G\n[namespace a]\nuid=*\nsalt=x\n"
				    "[gpu g]\nuuid=" UUID_A "\npool_bytes=50%\n");
	struct cqd_config *g = load("[daemon]\npool_bytes=1G\n[namespace a]\nuid=*\nsalt=x\n"
				    "[gpu g]\nuuid=" UUID_A "\npool_bytes=60%\n");

	ASSERT(!cqd_config_fixed(f, f));
	ASSERT(!strcmp(cqd_config_fixed(a, f), "a section [gpu NAME]"));
	ASSERT(!strcmp(cqd_config_fixed(f, a), "a section [gpu NAME]"));
	ASSERT(!strcmp(cqd_config_fixed(f, g), "a section [gpu NAME]"));
	cqd_config_free(f);
	cqd_config_free(g);
	ASSERT(!cqd_config_fixed(a, a));
	ASSERT(!cqd_config_fixed(a, b));
	ASSERT(!strcmp(cqd_config_fixed(a, c), "pool_bytes"));
	ASSERT(!strcmp(cqd_config_fixed(a, d), "salt"));
	ASSERT(!strcmp(cqd_config_fixed(a, e), "socket of a new namespace"));
	cqd_config_free(a);
	cqd_config_free(b);
	cqd_config_free(c);
	cqd_config_free(d);
	cqd_config_free(e);
}

TEST(times_and_priorities)
{
	struct cqd_config *cfg = load("[daemon]\nhalf_life = 2h\npressure = some 150ms\n"
				      "[namespace a]\nuid = *\npriority = 5\npriority_max = 9\n"
				      "ttl = 7d\n[namespace b]\nuid = *\nttl = 90\n");

	ASSERT_EQ(cfg->half_life_s, 7200);
	ASSERT_EQ(cfg->pressure_us, 150000);
	ASSERT_EQ(cfg->ns[0].priority, 5);
	ASSERT_EQ(cfg->ns[0].priority_max, 9);
	ASSERT_EQ(cfg->ns[0].ttl_s, 7 * 86400);
	ASSERT_EQ(cfg->ns[1].ttl_s, 90);
	ASSERT_EQ(cfg->ns[1].priority_max, 255);
	cqd_config_free(cfg);
	refused("[daemon]\nhalf_life = 0\n", 2, "outside 1 to 604800 seconds");
	refused("[daemon]\nhalf_life = 1500ms\n", 2, "whole seconds");
	refused("[daemon]\nhalf_life = soon\n", 2, "not a time");
	refused("[daemon]\nhalf_life = 5w\n", 2, "unknown unit \"w\"");
	refused("[daemon]\npressure = full 1s\n", 2, "neither off nor");
	refused("[daemon]\npressure = some 3s\n", 2, "outside 1ms to 2s");
	refused("[namespace a]\nuid = *\npriority = 256\n", 3, "outside 0 to 255");
	refused("[namespace a]\nuid = *\nttl = 99999999999d\n", 3, "ttl");
}
