/* SPDX-License-Identifier: MIT */
#include <cq.h>
#include <err.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	struct cq_model_info m = { .sz = sizeof(m) };
	struct cq_view q = { .dtype = CQ_F32 }, k, v, o;
	uint32_t ids[200], rows, layer, i, width;
	struct cq_ctx *ctx;
	struct cq_model *model;
	struct cq_batch *batch;
	struct cq_seq *seq;

	for (i = 0; i < 200; i++)
		ids[i] = i;	/* an engine has its tokenizer's ids here */
	if (cq_open(NULL, &ctx) || cq_model_open(ctx, argv[argc - 1], NULL, &model) ||
	    cq_model_get_info(model, &m) || cq_seq_open(model, ids, 200, NULL, &seq))
		errx(1, "%s", cq_last_error());
	printf("%zu of 200 tokens were there already\n", cq_seq_length(seq));
	rows = 200 - (uint32_t)cq_seq_length(seq);	/* one at least */
	width = 2 * (m.n_heads + m.n_kv_heads) * m.head_dim;	/* a row: q, o, k, v */
	q.data = calloc(rows, width * sizeof(float));
	q.stride_token = width, q.stride_head = m.head_dim, o = k = v = q;
	o.data = (float *)q.data + m.n_heads * m.head_dim;
	k.data = (float *)o.data + m.n_heads * m.head_dim;
	v.data = (float *)k.data + m.n_kv_heads * m.head_dim;
	if (cq_batch_new(model, 1, rows, 0, &batch) || cq_step(batch, &seq, &rows, 1))
		errx(1, "%s", cq_last_error());
	for (layer = 0; layer < m.n_layers; layer++) {
		for (i = 0; i < rows * width; i++)	/* an engine projects here */
			((float *)q.data)[i] = (float)(i * 2654435761u) / 4e9f;
		if (cq_append(seq, layer, &k, &v, rows, NULL) ||
		    cq_attention(batch, layer, &q, &o, NULL))
			errx(1, "%s", cq_last_error());
	}
	if (cq_commit(seq, ids + cq_seq_length(seq), rows) || cq_seal(seq, 5000))
		errx(1, "%s", cq_last_error());
	return cq_close(ctx), free(q.data), 0;
}
