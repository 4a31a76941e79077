// SPDX-License-Identifier: MIT
/*
 * Prometheus' text format 0.0.4, one family after the other, a row at a time:
 * a row is what belongs to one namespace, one kind of request, or all there is.
 * A reader that is slow keeps a cursor, not a copy; figures are those of the
 * moment at which their row is written.
 */
#include <dirent.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/metrics.h"
#include "daemon/server.h"
#include "kernels/kernels.h"

#define ROW_BYTES	4096	/* no row is longer */
#define LABEL_BYTES	160
#define FEW_CONNS	1024	/* then /proc/self/fd is short */
#define NS		1e-9
#define US		1e-6

/*
 * struct out - a piece being written
 * @st: figures of the store, of this piece
 */
struct out {
	struct cqd_server *srv;
	char *buf;
	size_t n, size;
	struct cqd_stats st;
	const struct family *f;
};

/*
 * struct family - a metric
 * @type: "gauge", "counter" or "histogram"
 * @row:  writes row number @i; false: there is none, the family is at its end
 * @at:   offset of the figure in what @row or @ns looks at
 * @ns:   with row_of_ns(): writes the row of one namespace
 */
struct family {
	const char *name, *type, *help;
	bool (*row)(struct out *o, uint32_t i);
	size_t at;
	void (*ns)(struct out *o, const struct cqd_ns_figures *fig, const char *labels);
};

__attribute__((format(printf, 2, 3)))
static void put(struct out *o, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(o->buf + o->n, o->size - o->n, fmt, ap);
	va_end(ap);
	if (n > 0)
		o->n += MIN((size_t)n, o->size - o->n - 1);
}

/* Label values: backslash, quote and newline are escaped. */
static const char *escape(const char *s, char out[LABEL_BYTES])
{
	size_t n = 0;

	for (; *s && n + 3 < LABEL_BYTES; s++) {
		if (*s == '\\' || *s == '"' || *s == '\n')
			out[n++] = '\\';
		out[n++] = *s == '\n' ? 'n' : *s;
	}
	out[n] = '\0';
	return out;
}

/* One sample; @labels without braces, "": none. */
static void sample(struct out *o, const char *labels, uint64_t value)
{
	if (labels[0])
		put(o, "%s{%s} %" PRIu64 "\n", o->f->name, labels, value);
	else
		put(o, "%s %" PRIu64 "\n", o->f->name, value);
}

/* @scale: seconds of the histogram's unit */
static void histogram(struct out *o, const char *labels, const struct cqd_hist *h,
		      const uint64_t *bounds, unsigned int n, double scale)
{
	const char *comma = labels[0] ? "," : "", *open = labels[0] ? "{" : "";
	uint64_t sum = 0;
	unsigned int i;

	for (i = 0; i < n; i++) {
		sum += h->n[i];
		put(o, "%s_bucket{%s%sle=\"%g\"} %" PRIu64 "\n", o->f->name, labels, comma,
		    (double)bounds[i] * scale, sum);
	}
	sum += h->n[n];
	put(o, "%s_bucket{%s%sle=\"+Inf\"} %" PRIu64 "\n", o->f->name, labels, comma, sum);
	put(o, "%s_sum%s%s%s %.9f\n", o->f->name, open, labels, labels[0] ? "}" : "",
	    (double)h->sum * scale);
	put(o, "%s_count%s%s%s %" PRIu64 "\n", o->f->name, open, labels,
	    labels[0] ? "}" : "", sum);
}

/* --- the whole daemon --- */

static bool row_stat(struct out *o, uint32_t i)
{
	uint64_t v;

	memcpy(&v, (const char *)&o->st + o->f->at, sizeof(v));
	if (!i)
		sample(o, "", v);
	return !i;
}

static bool row_build(struct out *o, uint32_t i)
{
	const struct cqk_ops *ops = cqk_select(NULL);

	if (!i)
		put(o, "%s{version=\"" CQ_VERSION "\",kernels=\"%s\"} 1\n", o->f->name,
		    ops ? ops->name : "none");
	return !i;
}

static bool row_ready(struct out *o, uint32_t i)
{
	if (!i)
		sample(o, "", cqd_server_ready(o->srv));
	return !i;
}

static bool row_start_time(struct out *o, uint32_t i)
{
	if (!i)
		put(o, "%s %" PRIu64 ".%06" PRIu64 "\n", o->f->name,
		    o->srv->born_us / 1000000, o->srv->born_us % 1000000);
	return !i;
}

static bool row_cpu(struct out *o, uint32_t i)
{
	struct rusage ru;

	if (!i && !getrusage(RUSAGE_SELF, &ru))
		put(o, "%s %.6f\n", o->f->name,
		    (double)(ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) +
		    (double)(ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) * US);
	return !i;
}

static bool row_rss(struct out *o, uint32_t i)
{
	unsigned long long all, rss;
	FILE *f = i ? NULL : fopen("/proc/self/statm", "re");

	if (f && fscanf(f, "%llu %llu", &all, &rss) == 2)
		sample(o, "", rss * (uint64_t)sysconf(_SC_PAGESIZE));
	if (f)
		fclose(f);
	return !i;
}

/* The folder's size is their number since Linux 6.2; before, a short one is read. */
static bool row_fds(struct out *o, uint32_t i)
{
	uint64_t n = 0;
	struct stat sb;
	DIR *d;

	if (i || stat("/proc/self/fd", &sb) < 0)
		return !i;
	if (sb.st_size > 0) {
		sample(o, "", (uint64_t)sb.st_size);
		return true;
	}
	d = o->srv->n_conns < FEW_CONNS ? opendir("/proc/self/fd") : NULL;
	if (!d)
		return true;
	/* cppcheck-suppress readdirCalled ; nobody else has this stream */
	while (readdir(d))
		n++;
	closedir(d);
	sample(o, "", n - 3);	/* ".", ".." and the folder itself */
	return true;
}

static bool row_max_fds(struct out *o, uint32_t i)
{
	struct rlimit rl;

	if (!i && !getrlimit(RLIMIT_NOFILE, &rl))
		sample(o, "", rl.rlim_cur);
	return !i;
}

static bool row_conns(struct out *o, uint32_t i)
{
	if (!i)
		sample(o, "", o->srv->n_conns);
	return !i;
}

static bool row_max_conns(struct out *o, uint32_t i)
{
	if (!i)
		sample(o, "", o->srv->config->max_connections);
	return !i;
}

static bool row_subscribers(struct out *o, uint32_t i)
{
	if (!i)
		sample(o, "", o->srv->events.n);
	return !i;
}

static bool row_lost(struct out *o, uint32_t i)
{
	if (!i)
		sample(o, "", o->srv->events.lost);
	return !i;
}

static bool row_turns(struct out *o, uint32_t i)
{
	if (!i)
		histogram(o, "", &o->srv->meter.turns, cqd_turn_bounds_ns, CQD_TURN_BOUNDS,
			  NS);
	return !i;
}

/* --- requests --- */

static bool row_requests(struct out *o, uint32_t i)
{
	const struct cqd_request_count *r = &o->srv->meter.request[i];
	const char *name = cqd_request_name(i);
	char labels[LABEL_BYTES];

	if (i >= CQD_REQUESTS)
		return false;
	if (!name)
		return true;
	snprintf(labels, sizeof(labels), "request=\"%s\",result=\"ok\"", name);
	sample(o, labels, r->ok);
	snprintf(labels, sizeof(labels), "request=\"%s\",result=\"error\"", name);
	sample(o, labels, r->failed);
	return true;
}

static bool row_durations(struct out *o, uint32_t i)
{
	const char *name = cqd_request_name(i);
	char labels[LABEL_BYTES];

	if (i >= CQD_REQUESTS)
		return false;
	if (!name)
		return true;
	snprintf(labels, sizeof(labels), "request=\"%s\"", name);
	histogram(o, labels, &o->srv->meter.request[i].took, cqd_request_bounds_ns,
		  CQD_REQUEST_BOUNDS, NS);
	return true;
}

/* --- namespaces --- */

static void ns_figure(struct out *o, const struct cqd_ns_figures *fig, const char *labels)
{
	uint64_t v;

	memcpy(&v, (const char *)fig + o->f->at, sizeof(v));
	if (v != UINT64_MAX)	/* a limit that is none */
		sample(o, labels, v);
}

static void ns_count(struct out *o, const struct cqd_ns_figures *fig, const char *labels)
{
	uint64_t v;

	memcpy(&v, (const char *)fig->counts + o->f->at, sizeof(v));
	sample(o, labels, v);
}

static void ns_tokens(struct out *o, const struct cqd_ns_figures *fig, const char *labels)
{
	uint64_t v;

	memcpy(&v, (const char *)fig->counts + o->f->at, sizeof(v));
	sample(o, labels, v * CQ_PAGE_TOKENS);
}

static void sample_of(struct out *o, const char *labels, const char *key, const char *value,
		      uint64_t n)
{
	put(o, "%s{%s,%s=\"%s\"} %" PRIu64 "\n", o->f->name, labels, key, value, n);
}

static void ns_states(struct out *o, const struct cqd_ns_figures *fig, const char *labels)
{
	unsigned int k;

	for (k = CQP_FILLING; k <= CQP_QUARANTINED; k++)
		sample_of(o, labels, "state", cqd_state_name(k), fig->counts->state[k]);
}

static void ns_seals(struct out *o, const struct cqd_ns_figures *fig, const char *labels)
{
	sample_of(o, labels, "result", "new", fig->counts->seals);
	sample_of(o, labels, "result", "existing", fig->counts->seals_existing);
	sample_of(o, labels, "result", "failed", fig->counts->seals_failed);
}

static void ns_gone(struct out *o, const struct cqd_ns_figures *fig, const char *labels)
{
	unsigned int k;

	for (k = 0; k < CQD_N_EVICT; k++)
		sample_of(o, labels, "reason", cqd_evict_reason_name(k), fig->counts->gone[k]);
}

static void ns_ages(struct out *o, const struct cqd_ns_figures *fig, const char *labels)
{
	histogram(o, labels, &fig->counts->age, cqd_age_bounds_us, CQD_AGE_BOUNDS, US);
}

static void label(char out[LABEL_BYTES], const char *what, const char *value)
{
	char text[LABEL_BYTES];

	snprintf(out, LABEL_BYTES, "%.10s=\"%.140s\"", what, escape(value, text));
}

/* One row of a family that has one for each namespace. */
static bool row_of_ns(struct out *o, uint32_t i)
{
	char labels[LABEL_BYTES];
	struct cqd_ns_figures fig;

	if (!cqd_ns_figures(o->srv->store, i, &fig))
		return false;
	label(labels, "namespace", fig.name);
	o->f->ns(o, &fig, labels);
	return true;
}

/* Connections are the sockets' business: of configured namespaces. */
static bool row_inside(struct out *o, uint32_t i)
{
	char labels[LABEL_BYTES];
	const struct cqd_tenant *t;
	struct list_head *pos;

	list_for_each(pos, &o->srv->tenants) {
		t = list_entry(pos, struct cqd_tenant, node);
		if (i--)
			continue;
		label(labels, "namespace", cqd_ns_name(t->ns));
		sample(o, labels, t->inside);
		return true;
	}
	return false;
}

static bool row_pool(struct out *o, uint32_t i)
{
	char labels[LABEL_BYTES];
	struct cqd_pool_figures f;

	if (!cqd_pool_figures(o->srv->store, i, &f))
		return false;
	label(labels, "pool", f.name);
	sample(o, labels, *(const uint64_t *)(const void *)((const char *)&f + o->f->at));
	return true;
}

#define S(field) offsetof(struct cqd_stats, field)
#define P(field) offsetof(struct cqd_pool_figures, field)
#define N(field) offsetof(struct cqd_ns_figures, field)
#define C(field) offsetof(struct cqd_ns_counts, field)

static const struct family families[] = {
	{ "cq_build_info", "gauge", "Version and kernels in use.", row_build, 0, NULL },
	{ "cq_ready", "gauge", "1 when cqd serves, 0 while it loads models or stops.",
	  row_ready, 0, NULL },
	{ "process_start_time_seconds", "gauge", "Start of the process, seconds since 1970.",
	  row_start_time, 0, NULL },
	{ "process_cpu_seconds_total", "counter", "User and system CPU time.", row_cpu, 0, NULL },
	{ "process_resident_memory_bytes", "gauge", "Resident memory.", row_rss, 0, NULL },
	{ "process_open_fds", "gauge", "Open file descriptors.", row_fds, 0, NULL },
	{ "process_max_fds", "gauge", "Limit of open file descriptors.", row_max_fds, 0, NULL },
	{ "cq_loop_busy_seconds", "histogram",
	  "Time that turns of the event loop were busy: the wait of everybody else.",
	  row_turns, 0, NULL },
	{ "cq_requests_total", "counter", "Requests answered.", row_requests, 0, NULL },
	{ "cq_request_duration_seconds", "histogram",
	  "Time from reading a request to its answer.", row_durations, 0, NULL },
	{ "cq_connections", "gauge", "Open connections.", row_conns, 0, NULL },
	{ "cq_connections_limit", "gauge", "max_connections.", row_max_conns, 0, NULL },
	{ "cq_event_subscribers", "gauge", "Connections that subscribed to events.",
	  row_subscribers, 0, NULL },
	{ "cq_events_lost_total", "counter", "Events that subscribers were too slow for.",
	  row_lost, 0, NULL },
	{ "cq_pool_limit_bytes", "gauge", "pool_bytes of each pool.", row_pool, P(limit), NULL },
	{ "cq_pool_reserved_bytes", "gauge", "Bytes of segments.", row_pool, P(reserved), NULL },
	{ "cq_pool_used_bytes", "gauge", "Bytes of slots in use.", row_pool, P(used), NULL },
	{ "cq_segments", "gauge", "Segments.", row_stat, S(segments), NULL },
	{ "cq_index_bytes", "gauge", "Bytes of live index records.", row_stat,
	  S(index_used), NULL },
	{ "cq_codebook_bytes", "gauge", "Bytes of model files.", row_stat,
	  S(codebook_bytes), NULL },
	{ "cq_fdstore_fds", "gauge", "Descriptors held by the service manager.", row_stat,
	  S(fdstore), NULL },
	{ "cq_pages_pinned", "gauge", "Pages with a pin.", row_stat, S(pages_pinned), NULL },
	{ "cq_verify_pending_pages", "gauge",
	  "Pages taken over at the start whose checksum was not looked at yet.", row_stat,
	  S(verify_pending), NULL },
	{ "cq_unchecked_pages", "gauge",
	  "The same in the memory of GPUs, until a worker uses them.", row_stat,
	  S(unchecked), NULL },
	{ "cq_namespace_used_bytes", "gauge", "Bytes of slots in use.", row_of_ns,
	  N(bytes), ns_figure },
	{ "cq_namespace_arena_bytes", "gauge", "Bytes of workers' arenas.", row_of_ns,
	  N(arena_bytes), ns_figure },
	{ "cq_namespace_quota_bytes", "gauge", "Limit of slots and arenas together.", row_of_ns,
	  N(quota_bytes), ns_figure },
	{ "cq_namespace_quota_pages", "gauge", "Limit of pages, where there is one.", row_of_ns,
	  N(quota_pages), ns_figure },
	{ "cq_namespace_quota_pins", "gauge", "Limit of pins, where there is one.", row_of_ns,
	  N(quota_pins), ns_figure },
	{ "cq_namespace_pages", "gauge", "Pages by state.", row_of_ns, 0, ns_states },
	{ "cq_namespace_pins", "gauge", "Pins (leases) of its clients.", row_of_ns,
	  N(pins), ns_figure },
	{ "cq_namespace_leases", "gauge", "Slots of GPUs that its clients write.", row_of_ns,
	  N(leases), ns_figure },
	{ "cq_namespace_clients", "gauge", "Sessions, orphaned ones included.", row_of_ns,
	  C(clients), ns_count },
	{ "cq_namespace_orphaned_clients", "gauge",
	  "Sessions that lost their connection and whose process lives.", row_of_ns,
	  C(orphans), ns_count },
	{ "cq_namespace_connections", "gauge", "Connected sessions.", row_inside, 0, NULL },
	{ "cq_seal_queue", "gauge", "Seals under way.", row_of_ns, C(sealing), ns_count },
	{ "cq_seals_total", "counter", "Seals by result.", row_of_ns, 0, ns_seals },
	{ "cq_restored_pages_total", "counter", "Pages brought back from files.", row_of_ns,
	  C(restored), ns_count },
	{ "cq_lookups_total", "counter", "Lookups.", row_of_ns, C(lookups), ns_count },
	{ "cq_hit_tokens_total", "counter", "Tokens of pages that lookups found.", row_of_ns,
	  C(hits), ns_tokens },
	{ "cq_missed_tokens_total", "counter", "Tokens of pages that lookups did not find.",
	  row_of_ns, C(misses), ns_tokens },
	{ "cq_evictions_total", "counter",
	  "Sealed pages that went; dropped: for a checksum, a parent or a model.", row_of_ns,
	  0, ns_gone },
	{ "cq_evicted_idle_seconds", "histogram", "Time since the last use of evicted pages.",
	  row_of_ns, 0, ns_ages },
	{ "cq_checksum_failures_total", "counter", "Pages with a wrong checksum.", row_of_ns,
	  C(checksum_failures), ns_count },
	{ "cq_reconnects_total", "counter", "Sessions taken up again by their process.",
	  row_of_ns, C(resumed), ns_count },
};

/**
 * cqd_metrics_text() - next piece of the text
 * @srv:    server
 * @cursor: 0 at first; where to go on, opaque
 * @buf:    filled with whole lines, no NUL
 * @size:   at least CQD_METRICS_MIN
 *
 * Return: bytes, 0 at the end.
 */
size_t cqd_metrics_text(struct cqd_server *srv, uint64_t *cursor, char *buf, size_t size)
{
	struct out o = { .srv = srv, .buf = buf, .size = size };
	uint32_t i = (uint32_t)(*cursor >> 32), row = (uint32_t)*cursor;

	cqd_store_stats(srv->store, &o.st);
	for (; i < ARRAY_SIZE(families); i++, row = 0) {
		o.f = &families[i];
		for (;; row++) {
			if (o.size - o.n < ROW_BYTES)
				goto out;
			if (!row)
				put(&o, "# HELP %s %s\n# TYPE %s %s\n", o.f->name, o.f->help,
				    o.f->name, o.f->type);
			if (!o.f->row(&o, row))
				break;
		}
	}
out:
	*cursor = (uint64_t)i << 32 | row;
	return o.n;
}
