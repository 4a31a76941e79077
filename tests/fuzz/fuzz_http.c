// SPDX-License-Identifier: MIT
/*
 * Fuzzer of HTTP requests: any bytes, arriving in any pieces. An answer does
 * not change when more comes, and only what is known is answered with 200.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/http.h"

#define MUST(c) do { if (!(c)) { perror(#c); abort(); } } while (0)

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

static int parse(const unsigned char *data, size_t n, struct cqd_http_req *req)
{
	char *copy = malloc(n ? n : 1);	/* exactly as large, for ASan */
	int status;

	MUST(copy);
	memcpy(copy, data, n);
	*req = (struct cqd_http_req){ .what = CQD_HTTP_NONE };
	status = cqd_http_parse(copy, n, req);
	free(copy);
	MUST(!status || status == 200 || status == 400 || status == 404 || status == 405 ||
	     status == 431 || status == 505);
	MUST((status == 200) == (req->what != CQD_HTTP_NONE));
	return status;
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
	struct cqd_http_req req, whole;
	size_t n, step;
	int status = 0, end;

	if (size > CQD_HTTP_REQUEST)
		size = CQD_HTTP_REQUEST;
	end = parse(data, size, &whole);
	step = size / 64 + 1;
	for (n = 0; n < size && !status; n += step)
		status = parse(data, n, &req);
	/* more bytes may spoil what was no answer yet, never an answer */
	MUST(!status || status == end || status == 400);
	if (status == 200)
		MUST(req.what == whole.what && req.chunks == whole.chunks);
	return 0;
}
