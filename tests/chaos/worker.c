// SPDX-License-Identifier: MIT
/*
 * A worker's life: open sequences, append, commit, seal, attend, fork, cut,
 * close, for as long as it is let live. Each sequence that is open is held:
 * -ESTALE on one is a page lost. Each attention result is compared with the
 * reference of the same text (text.c).
 *
 * What may fail is what cq.h says may fail when cqd is away or memory is
 * short; everything else ends the worker, and the run.
 */
#include <math.h>
#include <poll.h>
#include <sys/resource.h>
#include "tests/chaos/worker.h"

#define ARENA_BLOCKS	20

/* Small scores: every token weighs, so that every wrong one shows. */
static const float attn_scale = 0.02f;

struct worker me;		/* large: not on the stack */

/**
 * worker_lost() - the end: something that was held or acknowledged is gone
 * @what: call that said so
 * @text: text
 */
void worker_lost(const char *what, uint32_t text)
{
	chaos_count(&chaos->stale, 1);
	chaos_count(&chaos->lost, 1);
	FAIL("lost: %s of held text %u: %s", what, text, cq_last_error());
}

/* --- memory --- */

/**
 * worker_drop() - close a held sequence
 * @i: its place
 */
void worker_drop(unsigned int i)
{
	cq_seq_close(me.hold[i].seq);
	me.hold[i] = me.hold[--me.n];
}

static void wait_event(int ms)
{
	struct pollfd p = { .fd = cq_event_fd(me.ctx), .events = POLLIN };
	uint64_t n;

	if (poll(&p, 1, ms) == 1 && read(p.fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
		FAIL("eventfd: %s", strerror(errno));
}

/**
 * worker_make_room() - give up a sequence now and then, else wait
 * @keep: not this one
 */
void worker_make_room(const struct cq_seq *keep)
{
	unsigned int i = me.n ? chaos_below(&me.rng, me.n) : 0;

	chaos_count(&chaos->full, 1);
	if (me.n && me.hold[i].seq != keep && chaos_below(&me.rng, 4) == 0)
		worker_drop(i);
	else
		wait_event(5);
}

/* --- checking --- */

static struct cq_view view(void *data, uint32_t dtype, uint32_t heads)
{
	return (struct cq_view){ .data = data, .dtype = dtype,
				 .stride_token = (int64_t)heads * DIM, .stride_head = DIM };
}

/* Every byte a sequence reads is what its text says; @coded says in which form. */
static void check_read(struct hold *h, uint32_t layer, uint64_t coded[TEXT_PAGES])
{
	struct cq_view k = view(me.k, CQ_F16, KV_HEADS), v = view(me.v, CQ_F16, KV_HEADS);
	size_t n = cq_seq_length(h->seq);
	int ret = cq_read(h->seq, layer, 0, n, &k, &v), bad;

	if (ret == -ESTALE)
		worker_lost("cq_read()", h->text);
	MAY("cq_read", ret, false);
	bad = text_compare(me.k, me.v, h->text, layer, n, coded);
	if (bad < 0)
		return;
	chaos_count(&chaos->wrong, 1);
	FAIL("wrong: text %u layer %u token %d of %zu reads as neither of what it may",
	     h->text, layer, bad, n);
}

static void check_row(const struct hold *h, uint32_t layer, size_t at,
		      const uint64_t coded[TEXT_PAGES], const float *o)
{
	const double *ref = text_reference(&me.memo, h->text, layer, at, coded,
					   (double)attn_scale);
	double err = 0, norm = 0;
	uint64_t ppm, worst;
	uint32_t i;

	for (i = 0; i < ROW; i++) {
		err += ((double)o[i] - ref[i]) * ((double)o[i] - ref[i]);
		norm += ref[i] * ref[i];
	}
	err = sqrt(err / norm);
	chaos_count(&chaos->checked, 1);
	ppm = err < 1 ? (uint64_t)(err * 1e6) : 1000000;
	worst = chaos_get(&chaos->worst_ppm);
	while (ppm > worst && !atomic_compare_exchange_weak(&chaos->worst_ppm, &worst, ppm))
		;
	if (err <= TOLERANCE)
		return;
	chaos_count(&chaos->wrong, 1);
	FAIL("wrong: attention over text %u layer %u at token %zu is off by %g", h->text, layer,
	     at, err);
}

/* --- steps --- */

static int append(struct hold *h, uint32_t layer, size_t n)
{
	struct cq_append_opts ao = { .sz = sizeof(ao), .device = CQ_DEVICE_HOST };
	struct cq_view k = view(me.k, CQ_F16, KV_HEADS), v = view(me.v, CQ_F16, KV_HEADS);
	size_t at = cq_seq_length(h->seq);

	text_rows(me.k, h->text, 0, layer, at, n);
	text_rows(me.v, h->text, 1, layer, at, n);
	return cq_append(h->seq, layer, &k, &v, n, &ao);
}

/**
 * struct step - sequences that attend together
 * @h, @n:  them
 * @rows:   query rows of each
 * @layer:  attended
 * @coded:  what each reads from codes
 */
struct step {
	struct hold *h[BATCH_SEQS];
	uint32_t n, rows, layer;
	uint64_t coded[BATCH_SEQS][TEXT_PAGES];
};

static int step_run(struct step *s, bool commit)
{
	struct cq_attn_opts to = { .sz = sizeof(to), .device = CQ_DEVICE_HOST,
				   .scale = attn_scale };
	struct cq_view q = view(me.q, CQ_F16, HEADS), o = view(me.o, CQ_F32, HEADS);
	struct cq_seq *seqs[BATCH_SEQS];
	uint32_t rows[BATCH_SEQS], ids[BATCH_ROWS], i, l;
	int ret;

	for (i = 0; i < s->n; i++) {
		seqs[i] = s->h[i]->seq;
		rows[i] = s->rows;
	}
	ret = cq_step(me.batch, seqs, rows, s->n);
	if (ret)
		return ret;
	for (i = 0; i < s->n; i++)
		for (l = 0; l < LAYERS; l++)
			MAY("cq_append", append(s->h[i], l, s->rows), false);
	ret = cq_attention(me.batch, s->layer, &q, &o, &to);
	for (i = 0; i < s->n && commit && !ret; i++) {
		text_ids(ids, s->h[i]->text, cq_seq_length(seqs[i]), s->rows);
		MAY("cq_commit", cq_commit(seqs[i], ids, s->rows), false);
	}
	return ret;
}

/* As step_run(), on the clock: how long a token takes, and did it ever sleep? */
static int step_timed(struct step *s, bool commit)
{
	struct rusage before, after;
	uint64_t start;
	int ret;

	getrusage(RUSAGE_THREAD, &before);
	start = now_us();
	ret = step_run(s, commit);
	start = now_us() - start;
	getrusage(RUSAGE_THREAD, &after);
	if (ret)
		return ret;
	hist_add(&chaos->token[chaos_phase()], start);
	if (after.ru_nvcsw != before.ru_nvcsw)
		hist_add(&chaos->blocked[chaos_phase()], start);
	return 0;
}

/* Attend with @s; true if it was done, false if there is no room for it. */
static bool attend(struct step *s, bool commit)
{
	size_t at[BATCH_SEQS];
	uint32_t i, r;
	int ret;

	s->layer = chaos_below(&me.rng, LAYERS);
	for (i = 0; i < s->n; i++) {
		at[i] = cq_seq_length(s->h[i]->seq);
		if (at[i] + s->rows >= TEXT_TOKENS)
			return false;
		check_read(s->h[i], s->layer, s->coded[i]);
		for (r = 0; r < s->rows; r++)
			text_query(me.q + (i * s->rows + r) * ROW, s->h[i]->text, s->layer,
				   at[i] + r);
	}
	memset(me.o, 0xff, sizeof(me.o));
	ret = step_timed(s, commit);
	if (ret == -ESTALE)
		worker_lost("cq_attention()", s->h[0]->text);
	MAY("cq_step or cq_attention", ret, ret == -ENOBUFS);
	for (i = 0; i < s->n && !ret; i++)
		for (r = 0; r < s->rows; r++)
			check_row(s->h[i], s->layer, at[i] + r, s->coded[i],
				  me.o + (i * s->rows + r) * ROW);
	/* rows that are not committed are dropped */
	for (i = 0; i < s->n && !ret && !commit; i++)
		MAY("cq_truncate", cq_truncate(s->h[i]->seq, at[i]), false);
	return !ret;
}

/* Attend to one held sequence, or to some at once. */
static void attend_some(bool commit)
{
	struct step s = { .rows = 1 + chaos_below(&me.rng, 2) };
	unsigned int first = chaos_below(&me.rng, me.n), i;

	s.n = 1 + chaos_below(&me.rng, MIN(me.n, BATCH_SEQS));
	DOING("attending %u x %u", s.n, s.rows);
	for (i = 0; i < s.n; i++)
		s.h[i] = &me.hold[(first + i) % me.n];
	if (!attend(&s, commit))
		worker_make_room(NULL);
}

/**
 * worker_attend_last() - attend with the sequence held last, and compare
 */
void worker_attend_last(void)
{
	struct step s = { .rows = 1, .n = 1, .h = { &me.hold[me.n - 1] } };

	attend(&s, false);
}

/* --- growing --- */

static int chunk(struct hold *h, size_t n)
{
	uint32_t ids[64], l;
	int ret = 0;

	for (l = 0; l < LAYERS && !ret; l++)
		ret = append(h, l, n);
	if (ret) {
		/* what some layers have got is not a token yet */
		MAY("cq_truncate", cq_truncate(h->seq, cq_seq_length(h->seq)), false);
		return ret;
	}
	text_ids(ids, h->text, cq_seq_length(h->seq), n);
	return cq_commit(h->seq, ids, n);
}

static bool feed(struct hold *h, size_t total)
{
	struct cq_seq *seq = h->seq;
	long long end = test_now_ms() + 500;
	uint32_t text = h->text;
	size_t len, n;
	int ret;

	while ((len = cq_seq_length(seq)) < total && !stopped()) {
		struct hold at = { seq, text };	/* worker_make_room() moves holds about */

		n = 1 + chaos_below(&me.rng, 64);
		ret = chunk(&at, MIN(total - len, n));
		MAY("append or commit", ret, ret == -ENOBUFS);
		if (!ret)
			continue;
		if (test_now_ms() > end)
			return false;
		worker_make_room(seq);
	}
	return true;
}

/* Most have neither; few have so little that they go by themselves. */
static void options_pick(struct cq_seq_opts *so)
{
	uint32_t what = chaos_below(&me.rng, 32);

	if (what < 2)
		so->priority = 1 + chaos_below(&me.rng, 255);
	else if (what == 2)
		so->ttl_s = 1 + chaos_below(&me.rng, PAGE_TTL_S);
}

/**
 * worker_open_text() - cq_seq_open(), on the clock
 * @text: text
 * @n:    tokens
 *
 * Return: the sequence.
 */
struct cq_seq *worker_open_text(uint32_t text, size_t n)
{
	struct cq_seq_opts so = { .sz = sizeof(so) };
	uint32_t ids[TEXT_TOKENS], phase = chaos_phase(), outage = atomic_load(&chaos->outage);
	struct cq_seq *seq = NULL;
	uint64_t took;

	options_pick(&so);
	text_ids(ids, text, 0, n);
	took = now_us();
	MAY("cq_seq_open", cq_seq_open(me.model, ids, n, &so, &seq), false);
	took = now_us() - took;
	/* with nothing found at once, cqd was away: no attach */
	if (cq_seq_length(seq) || took > 1000)
		hist_add(&chaos->attach[phase], took);
	if (cq_seq_length(seq) && !(outage & 1) && outage == atomic_load(&chaos->outage))
		hist_add(&chaos->served[phase], took);
	chaos_count(&chaos->opened, 1);
	chaos_count(&chaos->matched, cq_seq_length(seq) / 64);
	return seq;
}

/* What this worker holds and was told is sealed is found by anybody. */
static void regain(const struct hold *h, size_t full)
{
	long long end = test_now_ms() + PATIENCE_MS;
	struct cq_seq *seq;
	size_t n;

	DOING("regaining text %u", h->text);
	for (;;) {
		seq = worker_open_text(h->text, full * 64 + 1);
		n = cq_seq_length(seq);
		cq_seq_close(seq);
		if (n == full * 64)
			break;
		if (n || test_now_ms() > end) {
			chaos_count(&chaos->lost, 1);
			FAIL("lost: %zu pages of text %u are sealed and held, %zu are found",
			     full, h->text, n / 64);
		}
		if (stopped())
			return;
		usleep(2000);
	}
	chaos_count(&chaos->regained, 1);
}

static void seal(struct hold *h)
{
	size_t full = cq_seq_length(h->seq) / 64;
	int ret;

	DOING("sealing text %u", h->text);
	ret = cq_seal(h->seq, 3000);
	if (ret == -ENOENT)
		worker_lost("cq_seal()", h->text);
	MAY("cq_seal", ret, unreachable(ret) || no_room(ret));
	chaos_count(unreachable(ret) ? &chaos->away : no_room(ret) ? &chaos->no_room :
		    &chaos->sealed, 1);
	if (!ret && full && chaos_below(&me.rng, 4) == 0)
		regain(h, full);
}

/* --- what a worker does --- */

static void do_open(void)
{
	struct hold *h;
	size_t n;

	if (me.n == HOLDS)
		worker_drop(chaos_below(&me.rng, me.n));
	h = &me.hold[me.n];
	h->text = text_pick(&me.rng);
	n = 2 + chaos_below(&me.rng, TEXT_TOKENS - 8);
	DOING("opening text %u", h->text);
	h->seq = worker_open_text(h->text, n);
	me.n++;
	DOING("growing text %u", h->text);
	if (!feed(h, n - 1))
		return;
	attend_some(false);
	if (me.n && chaos_below(&me.rng, 3))
		seal(&me.hold[me.n - 1]);
}

static void do_decode(void)
{
	uint32_t i, tokens = 1 + chaos_below(&me.rng, 24);

	for (i = 0; i < tokens && me.n && !stopped(); i++)
		attend_some(true);
}

static void do_fork(void)
{
	struct hold *h = &me.hold[chaos_below(&me.rng, me.n)];
	struct cq_seq *seq = NULL;
	int ret;

	if (me.n == HOLDS)
		return;
	DOING("forking text %u", h->text);
	ret = cq_fork(h->seq, NULL, &seq);
	if (ret == -ESTALE)
		worker_lost("cq_fork()", h->text);
	MAY("cq_fork", ret, ret == -ENOBUFS);
	if (ret)
		return;
	me.hold[me.n++] = (struct hold){ seq, h->text };
	chaos_count(&chaos->forks, 1);
}

/* Go back, and on as another text that began alike. */
static void do_cut(void)
{
	struct hold *h = &me.hold[chaos_below(&me.rng, me.n)];
	size_t len = cq_seq_length(h->seq), n, back = chaos_below(&me.rng, 80), more;
	int ret;

	n = chaos_below(&me.rng, 2) ? len - MIN(len, back) :
				      chaos_below(&me.rng, (uint32_t)len + 1);
	DOING("cutting text %u", h->text);
	ret = cq_truncate(h->seq, n);
	if (ret == -ESTALE)
		worker_lost("cq_truncate()", h->text);
	MAY("cq_truncate", ret, ret == -ENOBUFS);
	if (ret)
		return;
	chaos_count(&chaos->cuts, 1);
	if (n <= TEXT_SHARED * 64)
		h->text = text_cousin(h->text, &me.rng);
	more = n + chaos_below(&me.rng, 150);
	feed(h, MIN(more, (size_t)TEXT_TOKENS - 8));
}

static void do_something(void)
{
	uint32_t what = chaos_below(&me.rng, 100);

	if (!me.n || what < 45)
		do_open();
	else if (what < 65)
		attend_some(false);
	else if (what < 78)
		do_decode();
	else if (what < 84)
		do_fork();
	else if (what < 89)
		do_cut();
	else if (what < 96)
		handover_step();
	else if (what < 98)
		seal(&me.hold[chaos_below(&me.rng, me.n)]);
	else
		worker_drop(chaos_below(&me.rng, me.n));
}

/* --- beginning and end --- */

static int open_once(void)
{
	struct cq_open_opts oo = { .sz = sizeof(oo), .socket = me.job->sock, .name = "chaos" };
	uint64_t block = cq_f16_block_bytes(LAYERS, KV_HEADS, DIM, 64);
	struct cq_model_opts mo = { .sz = sizeof(mo), .device = CQ_DEVICE_HOST,
				    .arena_bytes = ARENA_BLOCKS * block };
	int ret;

	DOING("connecting");
	ret = cq_open(&oo, &me.ctx);
	MAY("cq_open", ret, unreachable(ret) || ret == -EUSERS || ret == -ENOSPC);
	if (ret)
		return ret;
	DOING("opening the model");
	ret = cq_model_open(me.ctx, "tiny", &mo, &me.model);
	/* -ENOENT: a cqd that has just started reads its models meanwhile */
	MAY("cq_model_open", ret, unreachable(ret) || no_room(ret) || ret == -ENOENT);
	if (!ret)
		ret = cq_batch_new(me.model, BATCH_SEQS, BATCH_ROWS, 0, &me.batch);
	if (ret)
		cq_close(me.ctx);
	return ret;
}

static bool open_all(void)
{
	long long end = test_now_ms() + PATIENCE_MS;
	int ret;

	while ((ret = open_once()) && !stopped()) {
		if (test_now_ms() > end)
			FAIL("no cqd for %d ms: %d, %s", PATIENCE_MS, ret, cq_last_error());
		usleep(5000);
	}
	return !ret;
}

/**
 * worker_main() - live until the end of the run, or a signal
 * @job: where, and with which random numbers
 */
void worker_main(const struct chaos_job *job)
{
	me.job = job;
	me.rng = job->seed;
	if (open_all()) {
		while (!stopped())
			do_something();
		DOING("closing");
		cq_batch_free(me.batch);
		cq_close(me.ctx);
	}
	_exit(0);
}

/* Read what is published of @text; marks its pages in @seen. */
static void audit_text(uint32_t text, bool seen[PAGES])
{
	struct hold h = { worker_open_text(text, TEXT_TOKENS), text };
	size_t n = cq_seq_length(h.seq), i;
	uint64_t coded[TEXT_PAGES];
	uint32_t l;

	for (l = 0; l < LAYERS && n; l++)
		check_read(&h, l, coded);
	for (i = 0; i < n / 64; i++)
		seen[text_page(text, (uint32_t)i)] = true;
	cq_seq_close(h.seq);
}

/**
 * worker_audit() - attach to every text and read all of it
 * @job:   where
 * @names: of the namespace: settle them, and nothing else
 *
 * Return: pages found.
 */
uint32_t worker_audit(const struct chaos_job *job, bool names)
{
	static bool seen[PAGES];
	uint32_t text, found = 0, i;

	me.job = job;
	if (!open_all())
		FAIL("no cqd for the audit");
	if (names)
		handover_audit();
	for (text = 0; text < TEXTS && !names; text++)
		audit_text(text, seen);
	for (i = 0; i < PAGES; i++)
		found += seen[i];
	cq_batch_free(me.batch);
	cq_close(me.ctx);
	return found;
}
