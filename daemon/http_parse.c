// SPDX-License-Identifier: MIT
/*
 * The head of an HTTP request, as far as it is of interest: method, target and
 * version. Fields are looked at only for being text.
 */
#include <ctype.h>
#include <string.h>
#include "daemon/http.h"

/* Length of the head with its empty line; 0: it is not there yet. */
static size_t head_len(const char *buf, size_t len)
{
	const char *p = buf, *nl;

	while ((nl = memchr(p, '\n', len - (size_t)(p - buf))) != NULL) {
		size_t line = (size_t)(nl - p);

		if (p != buf && (!line || (line == 1 && *p == '\r')))
			return (size_t)(nl - buf) + 1;
		p = nl + 1;
	}
	return 0;
}

/* Text: printable bytes, blanks, ends of lines, and what is beyond ASCII. */
static bool is_text(const char *buf, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++)
		if ((unsigned char)buf[i] < ' ' ? !strchr("\t\r\n", buf[i]) || !buf[i] :
		    buf[i] == 0x7f)
			return false;
	return true;
}

/* Length of the word at @s, of @len bytes. */
static size_t word(const char *s, size_t len)
{
	size_t n = 0;

	while (n < len && (unsigned char)s[n] > ' ' && s[n] != 0x7f)
		n++;
	return n;
}

static bool is_method(const char *s, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++)
		if (!isupper((unsigned char)s[i]))
			return false;
	return n > 0;
}

static bool equals(const char *s, size_t n, const char *to)
{
	return n == strlen(to) && !memcmp(s, to, n);
}

static int status_of(const char *method, size_t m, const char *target, size_t t,
		     struct cqd_http_req *out)
{
	const char *query = memchr(target, '?', t);
	enum cqd_http_what what = CQD_HTTP_NONE;

	if (query)
		t = (size_t)(query - target);
	if (equals(target, t, "/metrics"))
		what = CQD_HTTP_METRICS;
	else if (equals(target, t, "/health"))
		what = CQD_HTTP_HEALTH;
	if (what == CQD_HTTP_NONE)
		return 404;
	if (!equals(method, m, "GET"))
		return 405;
	out->what = what;
	return 200;
}

/**
 * cqd_http_parse() - read the head of a request
 * @buf: bytes received so far
 * @len: of them, at most CQD_HTTP_REQUEST
 * @out: set when the answer is 200
 *
 * Return: 0 if the head is not complete; else a status. 400 is for what is no
 * HTTP, 431 for a head of CQD_HTTP_REQUEST bytes or more.
 */
int cqd_http_parse(const char *buf, size_t len, struct cqd_http_req *out)
{
	size_t head = head_len(buf, len), m, t, v;
	const char *target, *version;

	if (!is_text(buf, head ? head : len))
		return 400;
	if (!head)
		return len >= CQD_HTTP_REQUEST ? 431 : 0;
	m = word(buf, head);
	if (!is_method(buf, m) || buf[m] != ' ')
		return 400;
	target = buf + m + 1;
	t = word(target, head - m - 1);
	if (!t || target[0] != '/' || target[t] != ' ')
		return 400;
	version = target + t + 1;
	v = word(version, head - m - t - 2);
	if (v != 8 || memcmp(version, "HTTP/", 5) || !isdigit((unsigned char)version[5]) ||
	    version[6] != '.' || !isdigit((unsigned char)version[7]) ||
	    (version[v] != '\r' && version[v] != '\n'))
		return 400;
	if (version[5] != '1')
		return 505;
	out->chunks = version[7] != '0';
	return status_of(buf, m, target, t, out);
}
