// SPDX-License-Identifier: MIT
/* Keys and values of all rows of a step at once; and graphs that hold such calls. */
#include <errno.h>
#include "client/gpu.h"

static struct cq_view rows_from(const struct cq_view *v, uint32_t row)
{
	struct cq_view out = *v;

	out.data = cqk_row_at(v, row, 0);
	return out;
}

/**
 * cqc_host_append_rows() - one sequence after the other
 * @b:    batch with a step
 * @a:    call, without a sequence
 * @opts: the caller's
 *
 * Return: as cq_append(); sequences before one that is refused have their rows.
 */
int cqc_host_append_rows(struct cq_batch *b, const struct cqc_append *a,
			 const struct cq_append_opts *opts)
{
	uint32_t i, row = 0;
	int ret = 0;

	for (i = 0; i < b->n_seqs && !ret; i++) {
		struct cq_view k = rows_from(a->k, row), v = rows_from(a->v, row);

		ret = cq_append(b->seqs[i], a->layer, &k, &v, b->rows[i], opts);
		row += b->rows[i];
	}
	return ret;
}

/**
 * cqc_rows_count() - a step's rows are appended
 * @b:     batch with a step
 * @layer: layer
 *
 * Return: 0; -EINVAL with text: rows of the layer were appended before.
 */
int cqc_rows_count(struct cq_batch *b, uint32_t layer)
{
	uint32_t i;

	for (i = 0; i < b->n_seqs; i++)
		if (b->rows[i] && b->seqs[i]->appended[layer])
			return cqc_fail(-EINVAL, "sequence %u of the step has %u tokens of layer "
						 "%u that are not committed",
					i, b->seqs[i]->appended[layer], layer);
	for (i = 0; i < b->n_seqs; i++)
		b->seqs[i]->appended[layer] += b->rows[i];
	return 0;
}

/**
 * cqc_rows_uncount() - undo that
 * @b:     batch with a step
 * @layer: layer
 */
void cqc_rows_uncount(struct cq_batch *b, uint32_t layer)
{
	uint32_t i;

	for (i = 0; i < b->n_seqs; i++)
		b->seqs[i]->appended[layer] -= b->rows[i];
}

CQ_API int cq_append_rows(struct cq_batch *batch, uint32_t layer, const struct cq_view *k,
			  const struct cq_view *v, const struct cq_append_opts *opts)
{
	struct cqc_append a = { .k = k, .v = v, .layer = layer };
	struct cq_append_opts o;
	int ret = cqc_batch_stepped(batch, "cq_append_rows");

	if (!ret)
		ret = cqc_opts_in(&o, sizeof(o), opts, "cq_append_opts");
	if (ret)
		return ret;
	if (!opts)
		o.device = batch->model->device;
	ret = cqc_append_check(batch->model, &a, batch->n_rows, &o);
	if (ret || !batch->n_rows)
		return ret;
	a.turn = cqc_key_turn(&batch->model->m.geom, o.flags);
	a.stream = o.stream;
	return batch->model->be->append_rows(batch, &a, opts);
}

CQ_API int cq_replayed(struct cq_batch *batch)
{
	uint32_t l = 0;
	int ret = cqc_batch_stepped(batch, "cq_replayed");

	while (!ret && l < batch->model->m.geom.n_layers)
		ret = cqc_rows_count(batch, l++);
	/* The layer that was refused is not counted. */
	if (ret && l)
		for (l--; l; l--)
			cqc_rows_uncount(batch, l - 1);
	return ret;
}
