/* SPDX-License-Identifier: MIT */
/*
 * What the daemon needs for itself: per page it holds and per client, as
 * differences of its resident memory less pages of segments (own.h). That is
 * record, state word, arrays and hash; reserved_kib is the index's whole size.
 *
 * BENCH_PAGES=N instead of 131,072, BENCH_CLIENTS=N instead of 10,000.
 */
#define TESTS_BENCH
#include "tests/bench/fill.h"
#include "tests/bench/own.h"

#define PAGES	131072
#define CLIENTS	10000

static struct sys s;
/* The smallest slot there is, 4 KiB. */
static const struct synth model = { .layers = 1, .heads = 1, .kv_heads = 1, .dim = 64,
				    .window = 64, .max_position = 32768, .code = "4c8b",
				    .seed = 3 };

static void pages(uint32_t n)
{
	struct own before, after;
	struct fill f;
	uint64_t start;

	fill_open(&f, s.sock, 4096);
	/* what comes once, with the first segment and the first answers */
	fill_pages(&f, 0, FILL_DEPTH);
	SYS_UNTIL(&s, st.pages_sealed == FILL_DEPTH && st.pages_pinned == 0);
	own_read(&before, s.cqd);
	start = bench_now_ns();
	fill_pages(&f, FILL_DEPTH, FILL_DEPTH + n);
	SYS_UNTIL(&s, st.pages_sealed == FILL_DEPTH + n && st.pages_pinned == 0);
	own_read(&after, s.cqd);
	printf("{\"bench\": \"memory\", \"of\": \"page\", \"n\": %u, \"bytes\": %.1f, "
	       "\"index\": %.1f, \"state\": %.1f, \"anon\": %.1f, \"own_kib\": %ld, "
	       "\"segments_kib\": %ld, \"reserved_kib\": %ld, \"seal_us\": %.1f}\n", n,
	       1024.0 * (double)(own_total(&after) - own_total(&before)) / n,
	       1024.0 * (double)(after.index - before.index) / n,
	       1024.0 * (double)(after.state - before.state) / n,
	       1024.0 * (double)(after.anon - before.anon) / n, own_total(&after),
	       after.segments, after.reserved, (double)(bench_now_ns() - start) / 1000 / n);
	fflush(stdout);
	fill_close(&f);
}

static void clients(int n)
{
	int *fds = calloc((size_t)n, sizeof(*fds)), i;
	struct own before, after;
	uint64_t start;

	ASSERT(fds);
	own_read(&before, s.cqd);
	start = bench_now_ns();
	for (i = 0; i < n; i++) {
		fds[i] = wire_open(s.sock);
		ASSERT_OK(fds[i]);
	}
	own_read(&after, s.cqd);
	printf("{\"bench\": \"memory\", \"of\": \"client\", \"n\": %d, \"bytes\": %.1f, "
	       "\"own_kib\": %ld, \"connect_us\": %.1f}\n", n,
	       1024.0 * (double)(own_total(&after) - own_total(&before)) / n,
	       own_total(&after), (double)(bench_now_ns() - start) / 1000 / n);
	for (i = 0; i < n; i++)
		close(fds[i]);
	free(fds);
}

int main(void)
{
	static const struct sys_opts opts = {
		.model = &model,
		.daemon = "max_connections = 16384\nuid_connections = 16384\n"
			  "max_clients = 16384\npool_bytes = 4G\n",
	};
	long n = own_number("BENCH_PAGES", PAGES), max = (long)own_nofile() - 128;

	sys_start(&s, &opts);
	pages((uint32_t)n / FILL_DEPTH * FILL_DEPTH);
	clients((int)MIN(own_number("BENCH_CLIENTS", CLIENTS), max));
	sys_stop(&s);
	bench_clean();
	return 0;
}
