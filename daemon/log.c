// SPDX-License-Identifier: MIT
/*
 * Log lines of cqd: "<N>text" on standard error, which journald turns into a
 * priority (sd-daemon(3)); without the prefix when a person is looking.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "cq/log.h"

#define LINE_BYTES 1024

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

/**
 * cq_log() - write one line
 * @prio: syslog(3) level
 * @fmt:  printf format
 *
 * Lines over 1 KiB are cut. Thread-safe.
 */
void cq_log(int prio, const char *fmt, ...)
{
	char line[LINE_BYTES];
	va_list ap;
	size_t head = 0, len;
	int n;

	if (!isatty(STDERR_FILENO)) {
		n = snprintf(line, sizeof(line), "<%d>", prio);
		head = (size_t)n;
	}
	va_start(ap, fmt);
	n = vsnprintf(line + head, sizeof(line) - head, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	len = strlen(line + head);
	len = clean(line + head, len);
	/* Nobody is left to hear of a failure. */
	if (write(STDERR_FILENO, line, head + len) < 0)
		return;
}
