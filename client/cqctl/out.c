// SPDX-License-Identifier: MIT
/* Output: failures, JSON, sizes and times for people. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "client/cqctl/cqctl.h"

int ctl_fail(struct ctl *c, int code, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fputs("cqctl: ", stderr);
	ctl_put_text(stderr, text);
	fputc('\n', stderr);
	if (c->json)
		ctl_print_json(json_pack("{s:o, s:i}", "error", ctl_json_text(text),
					 "code", code));
	return CTL_FAILED;
}

json_t *ctl_json_text(const char *s)
{
	json_t *j = json_string(s);
	char *copy, *p;

	if (j)
		return j;
	copy = strdup(s);
	for (p = copy; p && *p; p++)
		if ((unsigned char)*p >= 0x80)
			*p = '?';
	j = json_string(copy);
	free(copy);
	return j;
}

json_t *ctl_json_u64(uint64_t n)
{
	return json_integer((json_int_t)MIN(n, (uint64_t)INT64_MAX));
}

int ctl_print_json(json_t *obj)
{
	int ret = obj ? json_dumpf(obj, stdout, JSON_COMPACT) : -1;

	json_decref(obj);
	if (ret) {
		fputs("cqctl: no memory for the answer, or it is not UTF-8\n", stderr);
		return CTL_FAILED;
	}
	putchar('\n');
	return CTL_OK;
}

const char *ctl_bytes(uint64_t n, char *buf)
{
	static const char *const unit[] = { "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double x = (double)n / 1024;
	size_t i;

	if (n < 1024) {
		snprintf(buf, 24, "%" PRIu64 " B", n);
		return buf;
	}
	for (i = 0; i + 1 < ARRAY_SIZE(unit) && x >= 1023.95; i++)
		x /= 1024;
	snprintf(buf, 24, "%.1f %s", x, unit[i]);
	return buf;
}

const char *ctl_time(uint64_t us, char *buf)
{
	uint64_t s = us / 1000000;

	if (us < 1000)
		snprintf(buf, 24, "%" PRIu64 " us", us);
	else if (s < 1)
		snprintf(buf, 24, "%.1f ms", (double)us / 1e3);
	else if (s < 60)
		snprintf(buf, 24, "%.1f s", (double)us / 1e6);
	else if (s < 3600)
		snprintf(buf, 24, "%" PRIu64 " min %" PRIu64 " s", s / 60, s % 60);
	else if (s < 86400)
		snprintf(buf, 24, "%" PRIu64 " h %" PRIu64 " min", s / 3600,
			 s / 60 % 60);
	else
		snprintf(buf, 24, "%" PRIu64 " d %" PRIu64 " h", s / 86400,
			 s / 3600 % 24);
	return buf;
}

const char *ctl_hex(const uint8_t *data, size_t n, char *buf)
{
	static const char digits[] = "0123456789abcdef";
	size_t i;

	n = MIN(n, 32u);
	for (i = 0; i < n; i++) {
		buf[2 * i] = digits[data[i] >> 4];
		buf[2 * i + 1] = digits[data[i] & 15];
	}
	buf[2 * n] = '\0';
	return buf;
}

void ctl_put_text(FILE *f, const char *s)
{
	for (; *s; s++)
		fputc((unsigned char)*s < 0x20 || *s == 0x7f ? '?' : *s, f);
}
