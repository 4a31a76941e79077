// SPDX-License-Identifier: MIT
/*
 * top: namespaces and clients with what they do per second, again and again.
 * Rates are differences of counters between two listings.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "client/cqctl/cqctl.h"

#define CLEAR "\033[H\033[J"
#define NAME_WIDTH 20

/* --- one listing after the other --- */

static int by_id(const void *a, const void *b)
{
	const Cqp__Item *x = *(Cqp__Item *const *)a, *y = *(Cqp__Item *const *)b;

	if (x->id != y->id)
		return x->id < y->id ? -1 : 1;
	return strcmp(x->name, y->name);
}

void ctl_items_order(struct ctl_items *it)
{
	if (it->n)
		qsort(it->item, it->n, sizeof(*it->item), by_id);
}

const Cqp__Item *ctl_items_find(const struct ctl_items *it, const Cqp__Item *like)
{
	Cqp__Item *const *at = NULL;

	if (it->n)
		at = bsearch(&like, it->item, it->n, sizeof(*it->item), by_id);
	return at ? *at : NULL;
}

enum sort { BY_NAME, BY_BYTES, BY_PAGES, BY_PINS, BY_LOOKUPS, BY_SEALS, BY_EVICTIONS };
static const char *const sorts[] = {
	"name", "bytes", "pages", "pins", "lookups", "seals", "evictions",
};

/* Rates per second beside the item they are of. */
struct row {
	const Cqp__Item *it;
	double lookups, seals, evictions, hit_ratio;
};

/*
 * struct view - one listing
 * @items: by their ids
 * @row:  [n], into @items, as they are shown
 * @at:   seconds, when it was taken
 */
struct view {
	struct ctl_items items;
	struct row *row;
	size_t n;
	double at;
};

/*
 * struct top - one run
 * @kind: of the two views: namespaces, clients
 * @terminal: the screen is cleared, and only what fits is shown
 */
struct top {
	struct ctl *c;
	enum sort sort;
	bool once, terminal;
	uint64_t interval;
	struct view view[2];
};

static const Cqp__Kind kinds[] = { CQP__KIND__NAMESPACES, CQP__KIND__CLIENTS };

/* --- rates --- */

static double rate(uint64_t new, uint64_t old, double seconds)
{
	return new > old && seconds > 0 ? (double)(new - old) / seconds : 0;
}

static void set_rates(struct row *r, const Cqp__Item *was, double seconds)
{
	const Cqp__Item *is = r->it;
	double hits, misses;

	if (!was)
		return;
	r->lookups = rate(is->lookups, was->lookups, seconds);
	r->seals = rate(is->seals, was->seals, seconds);
	r->evictions = rate(is->evictions, was->evictions, seconds);
	hits = rate(is->hits, was->hits, seconds);
	misses = rate(is->misses, was->misses, seconds);
	r->hit_ratio = hits + misses > 0 ? hits / (hits + misses) : 0;
}

static double key(const struct row *r, enum sort sort)
{
	switch (sort) {
	case BY_BYTES:
		return (double)r->it->bytes;
	case BY_PAGES:
		return (double)r->it->pages;
	case BY_PINS:
		return (double)r->it->pins;
	case BY_LOOKUPS:
		return r->lookups;
	case BY_SEALS:
		return r->seals;
	case BY_EVICTIONS:
		return r->evictions;
	case BY_NAME:
	default:
		return 0;
	}
}

static int compare(const void *a, const void *b, void *arg)
{
	const struct row *x = a, *y = b;
	enum sort sort = *(const enum sort *)arg;
	double kx = key(x, sort), ky = key(y, sort);

	if (kx < ky || kx > ky)
		return kx < ky ? 1 : -1;
	return strcmp(x->it->name, y->it->name);
}

static void view_free(struct view *v)
{
	ctl_items_free(&v->items);
	free(v->row);
	*v = (struct view){ .row = NULL };
}

/* A listing with rates since @old, which is freed. 0 or -errno. */
static int view_take(struct top *t, size_t which)
{
	struct view *old = &t->view[which], v = { .at = (double)ctl_now_us() / 1e6 };
	size_t i;
	int ret = ctl_items_get(t->c, kinds[which], &v.items);

	if (ret)
		return ret;
	v.row = calloc(v.items.n + 1, sizeof(*v.row));
	if (!v.row) {
		view_free(&v);
		return cq_err_set(&t->c->err, -ENOMEM, "no memory for the listing");
	}
	ctl_items_order(&v.items);
	v.n = v.items.n;
	for (i = 0; i < v.n; i++) {
		v.row[i].it = v.items.item[i];
		set_rates(&v.row[i], ctl_items_find(&old->items, v.row[i].it),
			  v.at - old->at);
	}
	qsort_r(v.row, v.n, sizeof(*v.row), compare, &t->sort);
	view_free(old);
	*old = v;
	return 0;
}

/* --- output --- */

static json_t *row_json(const struct row *r, size_t which)
{
	json_t *o = json_pack("{s:o, s:I, s:I, s:f, s:f, s:f}", "name",
			      ctl_json_text(r->it->name), "bytes", (json_int_t)r->it->bytes,
			      "pins", (json_int_t)r->it->pins, "lookups_per_second",
			      r->lookups, "seals_per_second", r->seals, "hit_ratio",
			      r->hit_ratio);

	if (!which) {
		json_object_set_new(o, "pages", json_integer((json_int_t)r->it->pages));
		json_object_set_new(o, "evictions_per_second", json_real(r->evictions));
	} else {
		json_object_set_new(o, "pid", json_integer(r->it->pid));
		json_object_set_new(o, "namespace", ctl_json_text(r->it->tenant ?
								  r->it->tenant : ""));
	}
	return o;
}

static int print_json(const struct top *t)
{
	json_t *list[2];
	size_t which, i;

	for (which = 0; which < 2; which++) {
		list[which] = json_array();
		for (i = 0; i < t->view[which].n; i++)
			json_array_append_new(list[which],
					      row_json(&t->view[which].row[i], which));
	}
	return ctl_print_json(json_pack("{s:o, s:o}", "namespaces", list[0], "clients",
					list[1]));
}

static void put_name(const char *s)
{
	char cell[NAME_WIDTH + 1];
	size_t i;

	for (i = 0; s && s[i] && i < NAME_WIDTH; i++)
		cell[i] = (unsigned char)s[i] < 0x20 || s[i] == 0x7f ? '?' : s[i];
	cell[i] = '\0';
	printf("%-*s", NAME_WIDTH, cell);
}

static void print_row(const struct row *r, size_t which)
{
	char bytes[24];

	put_name(r->it->name);
	if (which)
		printf(" %8" PRIu32 " ", r->it->pid);
	else
		printf(" %8" PRIu64 " ", r->it->pages);
	printf("%10s %7" PRIu64 " %10.1f %6.1f %9.1f", ctl_bytes(r->it->bytes, bytes),
	       r->it->pins, r->lookups, 100 * r->hit_ratio, r->seals);
	if (which) {
		putchar(' ');
		ctl_put_text(stdout, r->it->tenant ? r->it->tenant : "-");
	} else {
		printf(" %9.1f", r->evictions);
	}
	putchar('\n');
}

static size_t rows_of_screen(const struct top *t)
{
	struct winsize w;

	if (!t->terminal || ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) < 0 || w.ws_row < 12)
		return SIZE_MAX;
	return w.ws_row - 6u;	/* two heads, two blank lines, what is left out */
}

static void print_view(const struct top *t, size_t which, size_t room)
{
	const struct view *v = &t->view[which];
	size_t i;

	printf("%-*s %8s %10s %7s %10s %6s %9s %s\n", NAME_WIDTH,
	       which ? "CLIENT" : "NAMESPACE", which ? "PID" : "PAGES",
	       which ? "ARENAS" : "BYTES", "PINS", "LOOKUPS/s", "HIT%", "SEALS/s",
	       which ? "NAMESPACE" : "EVICT/s");
	for (i = 0; i < v->n && i < room; i++)
		print_row(&v->row[i], which);
	if (i < v->n)
		printf("and %zu more\n", v->n - i);
}

/* False: nobody reads any more. */
static bool show(const struct top *t)
{
	size_t room = rows_of_screen(t);
	size_t first = room == SIZE_MAX ? room : MAX(room / 2, room - MIN(room, t->view[1].n));

	if (t->c->json) {
		print_json(t);
	} else {
		if (t->terminal)
			fputs(CLEAR, stdout);
		print_view(t, 0, first);
		putchar('\n');
		print_view(t, 1, room == SIZE_MAX ? room : room - MIN(room, t->view[0].n));
		if (!t->terminal && !t->once)
			putchar('\n');
	}
	if (!fflush(stdout))
		return true;
	if (errno == EPIPE)
		clearerr(stdout);
	return false;
}

/* --- the run --- */

/* A first listing only for the differences to it. */
static int run(struct top *t)
{
	size_t which;
	bool first = true;
	int ret = 0;

	while (!ctl_stopped()) {
		for (which = 0; which < 2 && !ret; which++)
			ret = view_take(t, which);
		if (ret && ctl_stopped())
			break;
		if (ret)
			return ctl_fail(t->c, ret, "%s", t->c->err.text);
		if (!first && (!show(t) || t->once))
			break;
		first = false;
		ctl_wait(NULL, 0, t->interval);
	}
	return CTL_OK;
}

int ctl_cmd_top(struct ctl *c, int argc, char **argv)
{
	struct top t = { .c = c, .sort = BY_BYTES, .interval = 1000 };
	const char *sort = NULL, *interval = NULL;
	bool batch = false;
	const struct ctl_opt opts[] = {
		{ "sort", 's', &sort, NULL }, { "interval", 'i', &interval, NULL },
		{ "once", '1', NULL, &t.once }, { "batch", 'b', NULL, &batch },
		{ NULL, 0, NULL, NULL },
	};
	int ret = ctl_parse(c, argc, argv, opts, NULL, 0, 0);

	if (ret != CTL_GO_ON)
		return ret;
	for (t.sort = sort ? BY_NAME : BY_BYTES; sort && strcmp(sort, sorts[t.sort]);)
		if (++t.sort == ARRAY_SIZE(sorts))
			return ctl_usage(c, "--sort %s: one of name, bytes, pages, pins, "
					 "lookups, seals, evictions", sort);
	if (interval && ctl_number(interval, 10, 3600000, &t.interval))
		return ctl_usage(c, "--interval %s: milliseconds from 10 to 3600000",
				 interval);
	t.terminal = !batch && !t.once && !c->json && isatty(STDOUT_FILENO);
	ctl_watch(c);
	ret = run(&t);
	view_free(&t.view[0]);
	view_free(&t.view[1]);
	return ret;
}
