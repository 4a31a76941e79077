// SPDX-License-Identifier: MIT
/*
 * Log lines of cqd. Where standard error is the journal's stream, an entry with
 * fields; else "<N>text" on standard error, which a service manager turns into
 * a priority (sd-daemon(3)); without the prefix when a person is looking.
 */
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>
#include "cq/log.h"
#include "cq/util.h"

#define LINE_BYTES	1024
#define FIELDS		8
#define FIELD_BYTES	160
#define LIMIT_S		60
#define MESSAGE		"MESSAGE="

/* Of the next line of this thread: "NAME=value". */
static _Thread_local struct {
	char text[FIELDS][FIELD_BYTES];
	unsigned int n;
} fields;

/* Replace what could start a line of its own; end with exactly one newline. */
static size_t clean(char *line, size_t len)
{
	size_t i;

	while (len && line[len - 1] == '\n')
		len--;
	for (i = 0; i < len; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			line[i] = '?';
	line[len] = '\n';
	return len + 1;
}

/* The service manager names the stream it made for us; it may be redirected. */
static bool is_journal(void)
{
	const char *name = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat sb;

	return name && sscanf(name, "%llu:%llu", &dev, &ino) == 2 &&
	       fstat(STDERR_FILENO, &sb) == 0 && sb.st_dev == dev && sb.st_ino == ino;
}

static bool have_journal(void)
{
	static atomic_int known;	/* 0: not yet, 1: no, 2: yes */
	int k = atomic_load_explicit(&known, memory_order_relaxed);

	if (!k) {
		k = is_journal() ? 2 : 1;
		atomic_store_explicit(&known, k, memory_order_relaxed);
	}
	return k == 2;
}

/* @line: "MESSAGE=text" of @len bytes. False: the journal did not take it. */
static bool to_journal(int prio, char *line, size_t len)
{
	static char ident[] = "SYSLOG_IDENTIFIER=cqd";
	struct iovec iov[FIELDS + 3];
	char level[16];
	int n = 0, i;

	snprintf(level, sizeof(level), "PRIORITY=%d", prio);
	iov[n++] = (struct iovec){ line, len };
	iov[n++] = (struct iovec){ level, strlen(level) };
	iov[n++] = (struct iovec){ ident, sizeof(ident) - 1 };
	for (i = 0; i < (int)fields.n; i++)
		iov[n++] = (struct iovec){ fields.text[i], strlen(fields.text[i]) };
	return sd_journal_sendv(iov, n) == 0;
}

/**
 * cq_log_field() - a field of the next line that this thread logs
 * @name: of the field
 * @fmt:  printf format of its value
 */
void cq_log_field(const char *name, const char *fmt, ...)
{
	char *text;
	va_list ap;
	int n;

	if (fields.n == FIELDS || !have_journal())
		return;
	text = fields.text[fields.n++];
	n = snprintf(text, FIELD_BYTES, "%.31s=", name);
	va_start(ap, fmt);
	vsnprintf(text + n, FIELD_BYTES - (size_t)n, fmt, ap);
	va_end(ap);
	text[clean(text, MIN(strlen(text), FIELD_BYTES - 2)) - 1] = '\0';
}

/**
 * cq_log() - write one line
 * @prio: syslog(3) level
 * @fmt:  printf format
 *
 * Lines over 1 KiB are cut. Thread-safe.
 */
void cq_log(int prio, const char *fmt, ...)
{
	char line[LINE_BYTES] = MESSAGE, *text;
	const size_t head = sizeof(MESSAGE) - 1;
	size_t len;
	va_list ap;
	bool taken;
	int n;

	text = line + head;
	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(line) - head, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	len = clean(text, strlen(text));
	taken = have_journal() && to_journal(prio, line, head + len - 1);
	fields.n = 0;
	if (taken)
		return;
	if (!isatty(STDERR_FILENO)) {
		text -= 3;		/* "<N>" instead of the end of "MESSAGE=" */
		text[0] = '<';
		text[1] = (char)('0' + (prio & LOG_PRIMASK));
		text[2] = '>';
		len += 3;
	}
	/* Nobody is left to hear of a failure. */
	if (write(STDERR_FILENO, text, len) < 0)
		return;
}

/* The fields are those of the line that follows. */
static void say_missed(uint64_t missed)
{
	unsigned int n = fields.n;

	fields.n = 0;
	cq_warn("%llu lines like the next one were left out", (unsigned long long)missed);
	fields.n = n;
}

/**
 * cq_ratelimit() - may this be logged now?
 * @rl: of the place
 *
 * Return: true once a minute.
 */
bool cq_ratelimit(struct cq_ratelimit *rl)
{
	struct timespec ts;
	uint64_t now;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	now = (uint64_t)ts.tv_sec + 1;
	if (rl->last && now - rl->last < LIMIT_S) {
		rl->missed++;
		fields.n = 0;
		return false;
	}
	if (rl->missed)
		say_missed(rl->missed);
	rl->last = now;
	rl->missed = 0;
	return true;
}
