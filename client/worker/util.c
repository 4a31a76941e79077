// SPDX-License-Identifier: MIT
/*
 * What every part of the worker needs: errors, whole files, time, IEEE halves.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "client/worker/worker.h"
#include "cq.h"

#define MAX_JSON (64u << 20)

int wk_error(int code, const char *fmt, ...)
{
	va_list ap;

	fputs("cq-worker: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	return code;
}

int wk_cq_error(int code, const char *what)
{
	return wk_error(code, "%s: %s", what, cq_last_error());
}

static int read_all(int fd, char *buf, size_t size)
{
	size_t done = 0;
	ssize_t n;

	while (done < size) {
		n = read(fd, buf + done, size - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			return -EIO;	/* it shrank meanwhile */
		done += (size_t)n;
	}
	return 0;
}

int wk_file_read(const char *path, size_t max, char **data, size_t *size)
{
	struct stat st;
	char *buf = NULL;
	int fd, ret;

	/* Not to wait for the other end of a pipe. */
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return wk_error(-errno, "%s: %s", path, strerror(errno));
	ret = fstat(fd, &st) < 0 ? -errno : 0;
	if (!ret && !S_ISREG(st.st_mode)) {
		close(fd);
		return wk_error(-EINVAL, "%s is not a regular file", path);
	}
	if (!ret && (uint64_t)st.st_size > max)
		ret = -EFBIG;
	if (ret)
		goto out;
	buf = malloc((size_t)st.st_size + 1);
	ret = buf ? read_all(fd, buf, (size_t)st.st_size) : -ENOMEM;
	if (ret)
		goto out;
	buf[st.st_size] = '\0';
	*data = buf;
	*size = (size_t)st.st_size;
	buf = NULL;
out:
	if (ret)
		wk_error(ret, "%s: %s", path, strerror(-ret));
	free(buf);
	close(fd);
	return ret;
}

json_t *wk_json_read(const char *path)
{
	json_error_t je;
	json_t *j;
	char *data;
	size_t size;

	if (wk_file_read(path, MAX_JSON, &data, &size))
		return NULL;
	j = json_loadb(data, size, JSON_REJECT_DUPLICATES, &je);
	free(data);
	if (!j)
		wk_error(-EINVAL, "%s: line %d: %s", path, je.line, je.text);
	return j;
}

int wk_path(char *path, const char *dir, const char *name)
{
	int n = snprintf(path, WK_PATH, "%s/%s", dir, name);

	if (n < 0 || n >= WK_PATH)
		return wk_error(-ENAMETOOLONG, "%s: name too long", dir);
	return 0;
}

int wk_ids_read(const char *path, uint32_t vocab, uint32_t **ids, size_t *n)
{
	unsigned char *p;
	uint32_t *out;
	char *data;
	size_t size, i;
	int ret;

	ret = wk_file_read(path, 1u << 28, &data, &size);
	if (ret)
		return ret;
	out = malloc((size / 2 + 1) * sizeof(*out));
	if (!out) {
		free(data);
		return wk_error(-ENOMEM, "%s: out of memory", path);
	}
	p = (unsigned char *)data;
	for (i = 0; i < size / 2; i++) {
		out[i] = p[2 * i] | (uint32_t)p[2 * i + 1] << 8;
		if (out[i] >= vocab) {
			ret = wk_error(-EINVAL, "%s: token %zu is %u, the vocabulary ends at %u",
				       path, i, out[i], vocab);
			break;
		}
	}
	if (!ret && size % 2)
		ret = wk_error(-EINVAL, "%s: odd number of bytes, not uint16", path);
	free(data);
	if (ret) {
		free(out);
		return ret;
	}
	*ids = out;
	*n = size / 2;
	return 0;
}

double wk_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

int wk_cmp_double(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double wk_median(double *x, size_t n)
{
	if (!n)
		return 0;
	qsort(x, n, sizeof(*x), wk_cmp_double);
	return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

float wk_f16_to_f32(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16;
	uint32_t exp = (h >> 10) & 0x1f, man = h & 0x3ff, bits;
	float f;

	if (!exp) {		/* zero and subnormals: man * 2^-24, exact */
		f = (float)man * 0x1p-24f;
		return sign ? -f : f;
	}
	bits = sign | (exp == 31 ? 0xffu : exp + 112) << 23 | man << 13;
	memcpy(&f, &bits, sizeof(f));
	return f;
}

uint16_t wk_f32_to_f16(float f)
{
	uint32_t bits, sign, man, half, rest, shift;
	int exp;

	memcpy(&bits, &f, sizeof(bits));
	sign = (bits >> 16) & 0x8000;
	exp = (int)((bits >> 23) & 0xff) - 112;
	man = bits & 0x7fffff;
	if (exp == 255 - 112)
		return (uint16_t)(sign | 0x7c00 | (man ? 0x200 : 0));
	if (exp >= 31)
		return (uint16_t)(sign | 0x7c00);
	if (exp < -10)
		return (uint16_t)sign;
	shift = 13;
	if (exp <= 0) {		/* subnormal: the leading one becomes explicit */
		man |= 0x800000;
		shift += (uint32_t)(1 - exp);
		exp = 0;
	}
	half = (uint32_t)exp << 10 | man >> shift;
	rest = man & ((1u << shift) - 1);
	if (rest > 1u << (shift - 1) || (rest == 1u << (shift - 1) && half & 1))
		half++;		/* a carry goes into the exponent, rightly */
	return (uint16_t)(sign | half);
}

/* Bytes of the UTF-8 character at @s, 0 if there is none. */
static size_t utf8_len(const unsigned char *s, size_t len)
{
	size_t n = s[0] < 0x80 ? 1 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2 :
		   s[0] >= 0xe0 && s[0] < 0xf0 ? 3 : s[0] >= 0xf0 && s[0] < 0xf5 ? 4 : 0;
	size_t i;

	if (!n || n > len)
		return 0;
	for (i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	/* overlong forms, surrogates, beyond U+10FFFF */
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
	    (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
		return 0;
	return n;
}

json_t *wk_json_text(const char *text, size_t len)
{
	const unsigned char *s = (const unsigned char *)text;
	char *out = malloc(3 * len + 1);
	size_t i = 0, n = 0, k;
	json_t *j;

	if (!out)
		return NULL;
	while (i < len) {
		k = utf8_len(s + i, len - i);
		if (k) {
			memcpy(out + n, s + i, k);
			n += k;
			i += k;
		} else {
			memcpy(out + n, "\xef\xbf\xbd", 3);
			n += 3;
			i++;
		}
	}
	j = json_stringn(out, n);
	free(out);
	return j;
}
