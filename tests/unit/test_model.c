// SPDX-License-Identifier: MIT
/*
 * All interleavings of a small world: two pages that want one slot, a daemon
 * that seals, evicts, takes back and dies at any moment (in its restart too),
 * and a worker that attaches, reads, lets go and reads on. Stores become
 * visible in any order that the barriers of Documentation/memory-ordering.md
 * leave. States of pages change by the table of daemon/state.c; that the order
 * of stores is the code's own is tested at the end.
 *
 * Shown for every reachable state:
 *
 *	- a worker never accepts bytes of another page than the one it attached
 *	- a page that a worker holds keeps its slot and its bytes
 *	- after a restart what is resident has its own bytes, what was promised is
 *	  resident, and nobody holds what he does not know of
 *
 * And for each order that is broken on purpose: that this finds it.
 */
#include "tests/stores.h"
#include "tests/unit/store_rig.h"

#define MAX_SEALS	5	/* and lookups */
#define MAX_CRASHES	2
#define BUF		6	/* stores on their way */

/* Words and fields; REC and GEN and nothing else are per page. */
enum loc { REC, REC_1, GEN, GEN_1, SLOT, LO, HI, PIN, PIN_PAGE, N_LOC };
enum op { IDLE, SEAL, LOOKUP, EVICT, RECLAIM, TAKE_BACK, RELEASE, RESTART, DOWN };
enum reader { NONE, HAS, READ_LO, READ_HI };

/* What can be broken. */
enum broken {
	NOTHING, WORD_BEFORE_PAYLOAD, ACK_BEFORE_WORD, EVICT_PINNED, NO_RECHECK,
	RECHECK_EARLY, FILLING_SURVIVES, NO_GENERATION_STEP, SLOT_NOT_FREED, N_BROKEN
};

static const char *const broken_name[N_BROKEN] = {
	"nothing", "record's word before the payload", "answer before the record's word",
	"eviction of a pinned page", "reader does not look again",
	"reader looks again too early", "restart keeps what was being filled",
	"slot reused under its old generation",
	"slot's word left at eviction, the next one's not ordered before the payload",
};

struct store {
	uint8_t loc, val, epoch;
};

/* Everything, packed: states are compared as bytes. */
struct world {
	uint8_t mem[N_LOC];		/* as others see it */
	struct store buf[BUF];
	uint8_t n_buf, epoch;
	uint8_t op, pc, page;		/* daemon */
	uint8_t reader, r_page, r_word, r_lo, r_hi;
	uint8_t holds, asked;		/* page + 1 that the worker pins, asked for last */
	uint8_t promised[2];
	uint8_t seals, crashes;
};

#define WORD(gen, state)	((uint8_t)((gen) << 3 | (state)))
#define STATE_OF(w)		((w) & 7u)
#define GEN_OF(w)		((w) >> 3)

/* --- the set of states seen, and those still to be looked at --- */

#define SEEN_BITS	22

static struct world *seen;
static uint32_t *table, n_seen;

static uint64_t hash(const struct world *w)
{
	const uint8_t *p = (const uint8_t *)w;
	uint64_t h = 0xcbf29ce484222325ull;
	size_t i;

	for (i = 0; i < sizeof(*w); i++)
		h = (h ^ p[i]) * 0x100000001b3ull;
	return h ^ h >> 29;
}

/* Epochs count from 0 without gaps: only their order tells. */
static void normalise(struct world *w)
{
	uint8_t last = w->n_buf ? w->buf[0].epoch : w->epoch, label = 0, was;
	unsigned int i;

	for (i = 0; i < w->n_buf; i++) {
		was = w->buf[i].epoch;
		label += was != last;
		last = was;
		w->buf[i].epoch = label;
	}
	w->epoch = (uint8_t)(label + (w->n_buf && w->epoch != last));
}

static void visit(const struct world *from)
{
	struct world copy = *from, *w = &copy;
	uint32_t mask = (1u << SEEN_BITS) - 1, i;

	normalise(w);
	i = (uint32_t)hash(w) & mask;

	for (; table[i]; i = (i + 1) & mask)
		if (!memcmp(&seen[table[i] - 1], w, sizeof(*w)))
			return;
	ASSERT_LT(n_seen, mask / 2);
	seen[n_seen++] = *w;
	table[i] = n_seen;
}

/* --- memory --- */

static enum broken broken;
static const char *wrong;

static void must(bool holds, const char *what)
{
	if (!holds && !wrong)
		wrong = what;
}

/* The daemon sees its own stores. */
static uint8_t load(const struct world *w, unsigned int loc)
{
	unsigned int i;

	for (i = w->n_buf; i-- > 0;)
		if (w->buf[i].loc == loc)
			return w->buf[i].val;
	return w->mem[loc];
}

static void put(struct world *w, unsigned int loc, unsigned int val)
{
	ASSERT_LT(w->n_buf, BUF);
	w->buf[w->n_buf++] = (struct store){ (uint8_t)loc, (uint8_t)val, w->epoch };
}

static void barrier(struct world *w)
{
	if (w->n_buf)
		w->epoch++;
}

static void release(struct world *w, unsigned int loc, unsigned int val)
{
	barrier(w);
	put(w, loc, val);
}

static bool may_commit(const struct world *w, unsigned int i)
{
	unsigned int k;

	for (k = 0; k < i; k++)
		if (w->buf[k].loc == w->buf[i].loc || w->buf[k].epoch < w->buf[i].epoch)
			return false;
	return true;
}

static void commit(struct world *w, unsigned int i)
{
	w->mem[w->buf[i].loc] = w->buf[i].val;
	w->n_buf--;
	memmove(&w->buf[i], &w->buf[i + 1], (w->n_buf - i) * sizeof(w->buf[0]));
	memset(&w->buf[w->n_buf], 0, sizeof(w->buf[0]));
	if (!w->n_buf)
		w->epoch = 0;
}

/* --- the daemon: one store per step --- */

static unsigned int next_state(unsigned int state, unsigned int event)
{
	int next = cqd_state_next(state, event);

	if (broken == FILLING_SURVIVES && state == CQP_FILLING && event == CQD_EV_RESTART)
		return CQP_SEALED;
	ASSERT_GE(next, 0);
	return (unsigned int)next;
}

static void rec_event(struct world *w, unsigned int event)
{
	release(w, REC + w->page, next_state(load(w, REC + w->page), event));
	barrier(w);
}

/* The slot's word follows the record's. */
static void slot_follows(struct world *w)
{
	release(w, SLOT, WORD(GEN_OF(load(w, SLOT)), load(w, REC + w->page)));
	barrier(w);
}

static void done(struct world *w)
{
	w->op = IDLE;
	w->pc = 0;
	w->page = 0;
}

/* The order of a seal: what each step stores. */
enum sealing { CLEAR, FILL, PIN_FIELD, PIN_WORD, TAKE, PLACE, COPY_LO, COPY_HI, PUBLISH,
	       SHOW, ANSWER, N_SEALING };

static const uint8_t good_order[N_SEALING] = {
	CLEAR, FILL, PIN_FIELD, PIN_WORD, TAKE, PLACE, COPY_LO, COPY_HI, PUBLISH, SHOW, ANSWER,
};

static uint8_t order[N_SEALING];

static void move_before(uint8_t what, uint8_t before)
{
	unsigned int i, n = 0;
	uint8_t out[N_SEALING];

	for (i = 0; i < N_SEALING; i++) {
		if (order[i] == before)
			out[n++] = what;
		if (order[i] != what)
			out[n++] = order[i];
	}
	memcpy(order, out, sizeof(order));
}

static void break_order(void)
{
	memcpy(order, good_order, sizeof(order));
	if (broken == WORD_BEFORE_PAYLOAD)
		move_before(PUBLISH, COPY_LO);
	if (broken == ACK_BEFORE_WORD)
		move_before(ANSWER, PUBLISH);
}

static void attach(struct world *w, unsigned int page)
{
	w->holds = (uint8_t)(page + 1);
	w->reader = HAS;
	w->r_page = (uint8_t)page;
	w->r_word = load(w, SLOT);
}

static void seal_step(struct world *w)
{
	unsigned int p = w->page, gen = GEN_OF(load(w, SLOT));

	switch (order[w->pc++]) {
	case CLEAR:
		put(w, GEN + p, 0);
		break;
	case FILL:
		rec_event(w, CQD_EV_FILL);
		break;
	case PIN_FIELD:
		put(w, PIN_PAGE, p);
		break;
	case PIN_WORD:
		release(w, PIN, CQP_SEALED);
		break;
	case TAKE:
		put(w, SLOT, WORD(gen + (broken != NO_GENERATION_STEP), CQP_FILLING));
		if (broken != SLOT_NOT_FREED)
			barrier(w);
		break;
	case PLACE:
		put(w, GEN + p, gen);
		break;
	case COPY_LO:
		put(w, LO, p + 1);
		break;
	case COPY_HI:
		put(w, HI, p + 1);
		barrier(w);	/* the job's end */
		break;
	case PUBLISH:
		rec_event(w, CQD_EV_PUBLISH);
		break;
	case SHOW:
		slot_follows(w);
		break;
	default:
		w->promised[p] = 1;
		attach(w, p);
	}
	if (w->pc == N_SEALING)
		done(w);
}

static void lookup_step(struct world *w)
{
	if (w->pc == 0) {
		put(w, PIN_PAGE, w->page);
	} else if (w->pc == 1) {
		release(w, PIN, CQP_SEALED);
	} else {
		attach(w, w->page);
		done(w);
		return;
	}
	w->pc++;
}

/* The reply goes through a socket: what was stored before is seen before. */
static bool answers(const struct world *w)
{
	return (w->op == SEAL && order[w->pc] == ANSWER) || (w->op == LOOKUP && w->pc == 2);
}

/* Two stores, record first: EVICT, RECLAIM, TAKE_BACK. */
static void event_step(struct world *w, unsigned int event)
{
	if (w->pc++ == 0) {
		rec_event(w, event);
		return;
	}
	if (broken != SLOT_NOT_FREED)
		slot_follows(w);
	done(w);
}

static void restart_page(struct world *w)
{
	unsigned int p = w->page, slot = load(w, SLOT), rec = load(w, REC + p);
	bool keeps = rec == CQP_SEALED && GEN_OF(slot) == load(w, GEN + p) &&
		     (STATE_OF(slot) == CQP_SEALED || STATE_OF(slot) == CQP_FILLING ||
		      STATE_OF(slot) == CQP_EVICTING);

	if (rec != CQP_SEALED && rec != CQP_FREE)
		rec_event(w, CQD_EV_RESTART);
	else if (rec == CQP_SEALED && !keeps)
		release(w, REC + p, CQP_FREE);
	else if (keeps && STATE_OF(slot) != CQP_SEALED)
		slot_follows(w);
}

static bool owned(const struct world *w)
{
	return load(w, REC) == CQP_SEALED || load(w, REC_1) == CQP_SEALED;
}

static void check_restarted(const struct world *w)
{
	unsigned int p;

	for (p = 0; p < 2; p++) {
		if (load(w, REC + p) == CQP_SEALED)
			must(load(w, LO) == p + 1 && load(w, HI) == p + 1,
			     "a resident page has other bytes");
		else
			must(!w->promised[p], "a promised page is lost");
		if (w->holds == p + 1)
			must(load(w, PIN) && load(w, PIN_PAGE) == p &&
			     load(w, REC + p) == CQP_SEALED, "a held page is lost");
	}
}

/* Pages, the slot if nobody owns it, pins. */
static void restart_step(struct world *w)
{
	unsigned int pinned;

	switch (w->pc++) {
	case 0:
	case 1:
		w->page = w->pc - 1;
		restart_page(w);
		break;
	case 2:
		if (!owned(w) && STATE_OF(load(w, SLOT)) != CQP_FREE)
			release(w, SLOT, WORD(GEN_OF(load(w, SLOT)), CQP_FREE));
		break;
	case 3:
		pinned = load(w, PIN_PAGE);
		if (load(w, PIN) && load(w, REC + pinned) != CQP_SEALED)
			release(w, PIN, CQP_FREE);
		break;
	default:
		check_restarted(w);
		/* a pin whose answer got lost: the worker asks again, or dies */
		if (load(w, PIN))
			must(load(w, PIN_PAGE) + 1 == w->holds ||
			     load(w, PIN_PAGE) + 1 == w->asked, "a pin that nobody asked for");
		done(w);
	}
}

static void daemon_step(struct world *w)
{
	switch (w->op) {
	case SEAL:
		seal_step(w);
		break;
	case LOOKUP:
		lookup_step(w);
		break;
	case EVICT:
		event_step(w, CQD_EV_EVICT);
		break;
	case RECLAIM:
		event_step(w, CQD_EV_RECLAIM);
		break;
	case TAKE_BACK:
		event_step(w, CQD_EV_TAKE_BACK);
		break;
	case RELEASE:
		release(w, PIN, CQP_FREE);
		barrier(w);
		done(w);
		break;
	default:
		restart_step(w);
	}
}

/* --- all that can happen next --- */

static void start(const struct world *w, enum op next, unsigned int page)
{
	struct world n = *w;

	n.op = (uint8_t)next;
	n.pc = 0;
	n.page = (uint8_t)page;
	if (next == EVICT)
		n.promised[page] = 0;
	if (next == SEAL || next == LOOKUP) {
		n.seals++;
		n.asked = (uint8_t)(page + 1);
	}
	if (next == RELEASE)
		n.holds = 0;	/* the worker reads on for a while, unprotected */
	visit(&n);
}

static void idle_daemon(const struct world *w)
{
	bool pinned = load(w, PIN) != CQP_FREE && broken != EVICT_PINNED;
	bool room = load(w, REC) == CQP_FREE && load(w, REC_1) == CQP_FREE;
	unsigned int p;

	for (p = 0; p < 2; p++) {
		unsigned int rec = load(w, REC + p);

		if (rec == CQP_FREE && room && !load(w, PIN) && w->seals < MAX_SEALS)
			start(w, SEAL, p);
		if (rec == CQP_SEALED && !pinned)
			start(w, EVICT, p);
		if (rec == CQP_SEALED && !load(w, PIN) && w->seals < MAX_SEALS)
			start(w, LOOKUP, p);
		if (rec == CQP_EVICTING) {
			start(w, RECLAIM, p);
			start(w, TAKE_BACK, p);
		}
	}
	/* who died, or let go */
	if (load(w, PIN) != CQP_FREE)
		start(w, RELEASE, load(w, PIN_PAGE));
}

static void crash(const struct world *w)
{
	struct world n = *w;

	/* what was stored by the process is in memory when it is gone */
	while (n.n_buf)
		commit(&n, 0);
	n.op = DOWN;
	n.pc = 0;
	n.page = 0;
	n.crashes++;
	visit(&n);
}

static void reader_step(const struct world *w)
{
	struct world n = *w;
	bool same;

	if (w->reader == HAS) {
		n.r_lo = w->mem[LO];
		n.reader = READ_LO;
	} else if (w->reader == READ_LO) {
		n.r_hi = w->mem[HI];
		if (broken == RECHECK_EARLY)
			n.r_lo = w->mem[LO];
		n.reader = READ_HI;
		if (broken == RECHECK_EARLY && w->mem[SLOT] == w->r_word)
			n.reader = READ_HI + 1;
	} else {
		same = w->mem[SLOT] == w->r_word || broken == NO_RECHECK ||
		       w->reader > READ_HI;
		if (w->reader > READ_HI)
			n.r_hi = w->mem[HI];
		must(!same || (n.r_lo == w->r_page + 1 && n.r_hi == w->r_page + 1),
		     "bytes of another page were accepted");
		must(same || w->holds != w->r_page + 1, "a held page was taken away");
		n.reader = w->holds ? HAS : NONE;
		n.r_lo = 0;
		n.r_hi = 0;
		if (!n.reader) {
			n.r_word = 0;
			n.r_page = 0;
		}
	}
	visit(&n);
}

static void expand(const struct world *w)
{
	struct world n;
	unsigned int i;

	for (i = 0; i < w->n_buf; i++) {
		if (!may_commit(w, i))
			continue;
		n = *w;
		commit(&n, i);
		visit(&n);
	}
	if (w->reader != NONE)
		reader_step(w);
	if (w->op == IDLE) {
		idle_daemon(w);
	} else if (w->op == DOWN) {
		start(w, RESTART, 0);
	} else if (w->n_buf + 2 < BUF && (!w->n_buf || !answers(w))) {
		n = *w;
		daemon_step(&n);
		visit(&n);
	}
	if (w->op != DOWN && w->crashes < MAX_CRASHES)
		crash(w);
}

/* What is wrong in some reachable state, NULL if nothing is. */
static const char *explore(enum broken b)
{
	struct world first;
	uint32_t i;

	broken = b;
	break_order();
	wrong = NULL;
	n_seen = 0;
	memset(table, 0, sizeof(*table) << SEEN_BITS);
	memset(&first, 0, sizeof(first));
	visit(&first);
	for (i = 0; i < n_seen && !wrong; i++) {
		struct world w = seen[i];

		expand(&w);
	}
	return wrong;
}

static void explore_start(void)
{
	seen = malloc(sizeof(*seen) << (SEEN_BITS - 1));
	table = calloc(1u << SEEN_BITS, sizeof(*table));
	ASSERT(seen && table);
}

TEST_LIMIT(every_interleaving_is_right, 120)
{
	const char *bad;

	explore_start();
	bad = explore(NOTHING);
	printf("# %u states of %zu bytes\n", n_seen, sizeof(struct world));
	if (bad)
		FAIL("%s", bad);
	free(seen);
	free(table);
}

TEST_LIMIT(every_broken_order_is_found, 240)
{
	const char *bad;
	unsigned int b;

	explore_start();
	for (b = NOTHING + 1; b < N_BROKEN; b++) {
		bad = explore((enum broken)b);
		printf("# %s: %s (%u states)\n", broken_name[b], bad ? bad : "not found", n_seen);
		ASSERT(bad);
	}
	free(seen);
	free(table);
}

/* --- the model's order is the code's --- */

static struct rig rig;
static uint8_t trace[64];
static unsigned int n_trace;

enum kind { A_REC_WORD = 1, A_REC_FIELD, A_PIN_WORD, A_PIN_FIELD, A_SLOT_WORD };

static void on_store(uint64_t n)
{
	const uint8_t *at = stores.at, *pages, *pins, *words;
	const struct cqd_index *ix;
	unsigned int what = 0;

	if (!rig.st || !rig.ns)
		return;
	ix = &rig.st->ix;
	pages = (const uint8_t *)ix->pages;
	pins = (const uint8_t *)ix->pins;
	words = (const uint8_t *)rig.ns->words;

	if (at >= pages && at < pages + sizeof(*ix->pages) * ix->hdr->n_pages)
		what = (at - pages) % sizeof(*ix->pages) ? A_REC_FIELD : A_REC_WORD;
	else if (at >= pins && at < pins + sizeof(*ix->pins) * ix->hdr->n_pins)
		what = (at - pins) % sizeof(*ix->pins) ? A_PIN_FIELD : A_PIN_WORD;
	else if (at >= words && at < words + 8 * rig.ns->n_words)
		what = A_SLOT_WORD;
	/* several fields in a row are one step */
	if (what && n_trace < ARRAY_SIZE(trace) && (!n_trace || trace[n_trace - 1] != what))
		trace[n_trace++] = (uint8_t)what;
}

/* The words of the trace are these, exactly; fields come where they must, at least. */
static void check_trace(const uint8_t *want, size_t n)
{
	size_t k = 0, words = 0, found = 0;
	unsigned int i;

	for (i = 0; i < n; i++)
		words += want[i] != A_REC_FIELD && want[i] != A_PIN_FIELD;
	for (i = 0; i < n_trace; i++) {
		found += trace[i] != A_REC_FIELD && trace[i] != A_PIN_FIELD;
		if (k < n && trace[i] == want[k])
			k++;
	}
	ASSERT_EQ(k, n);
	ASSERT_EQ(found, words);
}

TEST(order_of_the_code)
{
	/* FILL needs its fields, PUBLISH those of the place and of the checksum */
	static const uint8_t of_a_seal[] = {
		A_REC_FIELD, A_REC_WORD, A_PIN_FIELD, A_PIN_WORD, A_SLOT_WORD, A_REC_FIELD,
		A_REC_WORD, A_SLOT_WORD,
	};
	static const uint8_t of_an_eviction[] = {
		A_REC_WORD, A_SLOT_WORD, A_REC_WORD, A_SLOT_WORD,
	};
	struct cqp_key keys[1];
	struct cqp_page pages[1];
	struct rig_wait w;

	if (!STORES_WORK)
		SKIP("stores cannot be watched one by one here");
	rig_defaults(&rig);
	stores_watch(on_store);
	stores.before = on_store;
	rig.st = NULL;
	rig_start(&rig);
	rig_chain(&rig, 1, 1, keys, pages);
	n_trace = 0;
	w = rig_seal(&rig, rig.cl, rig.arena_id, &keys[0], 2);
	ASSERT_EQ(w.ret, 0);
	check_trace(of_a_seal, sizeof(of_a_seal));
	ASSERT_EQ(cqd_release(rig.cl, &w.res.page, 1, &rig.err), 0);
	n_trace = 0;
	ASSERT(cqd_evict_one(rig.st, NULL, NULL));
	check_trace(of_an_eviction, sizeof(of_an_eviction));
	stores.before = NULL;
	rig_stop(&rig);
}
