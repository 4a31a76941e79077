// SPDX-License-Identifier: MIT
/* Log lines: on standard error, in a journal, and not too often. */
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <systemd/sd-journal.h>
#include "tests/harness.h"
#include "cq/log.h"
#include "cq/util.h"
#include "daemon/msgid.h"

static char entry[4096];	/* fields of the last entry, a line each */
static int entries, refuse;

int __wrap_sd_journal_sendv(const struct iovec *iov, int n);
int __wrap_sd_journal_sendv(const struct iovec *iov, int n)
{
	size_t len = 0;
	int i;

	if (refuse)
		return -ENOENT;
	entries++;
	for (i = 0; i < n; i++) {
		ASSERT(!memchr(iov[i].iov_base, '\n', iov[i].iov_len));
		len += (size_t)snprintf(entry + len, sizeof(entry) - len, "%.*s\n",
					(int)iov[i].iov_len, (char *)iov[i].iov_base);
	}
	return 0;
}

/* Standard error is a file, which JOURNAL_STREAM names if @journal. */
static int open_log(bool journal)
{
	char path[300], name[64];
	struct stat sb;
	int fd;

	snprintf(path, sizeof(path), "%s/log", test_dir());
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ASSERT_SYS(fd);
	ASSERT_SYS(dup2(fd, 2));
	ASSERT_SYS(fstat(fd, &sb));
	snprintf(name, sizeof(name), "%llu:%llu", (unsigned long long)sb.st_dev,
		 (unsigned long long)sb.st_ino);
	ASSERT_SYS(journal ? setenv("JOURNAL_STREAM", name, 1) : unsetenv("JOURNAL_STREAM"));
	return fd;
}

static const char *logged(int fd)
{
	static char buf[4096];
	ssize_t n = pread(fd, buf, sizeof(buf) - 1, 0);

	ASSERT(n >= 0);
	buf[n] = '\0';
	return buf;
}

TEST(lines)
{
	int fd = open_log(false);

	cq_log_field("CQ_NAMESPACE", "%s", "gone");
	cq_err("page %d\nforged\x1b", 7);
	cq_info("good\n");
	ASSERT_STREQ(logged(fd), "<3>page 7?forged?\n<6>good\n");
	ASSERT_EQ(entries, 0);
	close(fd);
}

TEST(long_lines)
{
	static char text[3000];
	int fd = open_log(false);

	memset(text, 'x', sizeof(text) - 1);
	cq_err("%s", text);
	ASSERT_GT(strlen(logged(fd)), 1000);
	ASSERT_LT(strlen(logged(fd)), 1025);
	ASSERT_EQ(logged(fd)[strlen(logged(fd)) - 1], '\n');
	close(fd);
}

TEST(entries_with_fields)
{
	int fd = open_log(true), i;

	cq_log_field("MESSAGE_ID", "%s", CQD_MSG_CHECKSUM);
	cq_log_field("CQ_NAMESPACE", "%s", "red\nMESSAGE=forged");
	cq_log_field("ERRNO", "%d", 12);
	cq_err("page %d", 7);
	ASSERT_STREQ(entry, "MESSAGE=page 7\nPRIORITY=3\nSYSLOG_IDENTIFIER=cqd\n"
		     "MESSAGE_ID=" CQD_MSG_CHECKSUM "\n"
		     "CQ_NAMESPACE=red?MESSAGE=forged\nERRNO=12\n");
	/* fields are those of one line */
	cq_warn("next");
	ASSERT_STREQ(entry, "MESSAGE=next\nPRIORITY=4\nSYSLOG_IDENTIFIER=cqd\n");
	for (i = 0; i < 20; i++)
		cq_log_field("CQ_PATH", "%0200d", i);
	cq_info("many");
	ASSERT_EQ(entries, 3);
	ASSERT_LT(strlen(entry), 8 * 161 + 100);
	ASSERT_STREQ(logged(fd), "");
	/* a journal that does not answer: nothing is lost */
	refuse = 1;
	cq_log_field("ERRNO", "%d", 1);
	cq_err("still here");
	ASSERT_STREQ(logged(fd), "<3>still here\n");
	close(fd);
}

TEST(once_a_minute)
{
	struct cq_ratelimit rl = { 0 };
	int fd = open_log(false), i;

	for (i = 0; i < 100; i++)
		if (cq_ratelimit(&rl))
			cq_err("again");
	ASSERT_STREQ(logged(fd), "<3>again\n");
	ASSERT_EQ(rl.missed, 99);
	rl.last -= 60;	/* a minute later, or at most one second before that */
	if (!cq_ratelimit(&rl))
		FAIL("a minute later: no");
	ASSERT_STRHAS(logged(fd), "99 lines like the next one were left out\n");
	close(fd);
}

/* Each id is explained, each explanation has an id, and nothing is double. */
TEST(catalog)
{
	static const char *const ids[] = {
		CQD_MSG_SERVING, CQD_MSG_CHECKSUM, CQD_MSG_MODEL_FAILED, CQD_MSG_UNWATCHED,
		CQD_MSG_NO_DESCRIPTORS, CQD_MSG_CONFIG_REFUSED, CQD_MSG_NOT_TAKEN_OVER,
		CQD_MSG_HOLDER_LOST,
	};
	FILE *f = fopen("systemd/cq.catalog", "re");
	unsigned int found = 0, n = 0;
	char line[200];
	size_t i;

	if (!f)
		SKIP("not run from the top folder");
	while (fgets(line, sizeof(line), f)) {
		if (strncmp(line, "-- ", 3))
			continue;
		n++;
		line[strcspn(line, "\n")] = '\0';
		for (i = 0; i < ARRAY_SIZE(ids); i++)
			if (!strcmp(line + 3, ids[i]))
				found |= 1u << i;
	}
	fclose(f);
	ASSERT_EQ(n, ARRAY_SIZE(ids));
	ASSERT_EQ(found, (1u << ARRAY_SIZE(ids)) - 1);
}
