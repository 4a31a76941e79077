/* SPDX-License-Identifier: MIT */
#include <cq.h>
#include <stdio.h>
#include <stdlib.h>
#define TRY(call) do { if (call) return fprintf(stderr, "%s\n", cq_last_error()), 1; } while (0)

int main(int argc, char **argv)
{
	struct cq_model_info m = { .sz = sizeof(m) };
	struct cq_view q = { .dtype = CQ_F32 }, k, v, o;
	uint32_t ids[200], rows, layer, i, width;
	struct cq_batch *batch;
	struct cq_model *model;
	struct cq_ctx *ctx;
	struct cq_seq *seq;
	float *x;

	for (i = 0; i < 200; i++)
		ids[i] = i;	/* an engine has its tokenizer's ids here */
	TRY(cq_open(NULL, &ctx));
	TRY(cq_model_open(ctx, argc > 1 ? argv[1] : "coded", NULL, &model));
	TRY(cq_model_get_info(model, &m));
	TRY(cq_seq_open(model, ids, 200, NULL, &seq));
	printf("%zu of 200 tokens were there already\n", cq_seq_length(seq));
	rows = 200 - (uint32_t)cq_seq_length(seq);	/* one at least */
	width = 2 * (m.n_heads + m.n_kv_heads) * m.head_dim;	/* a row: q, o, k, v */
	x = calloc(rows, width * sizeof(float));
	q.data = x, q.stride_token = width, q.stride_head = m.head_dim, o = k = v = q;
	o.data = x + m.n_heads * m.head_dim;
	k.data = x + 2 * m.n_heads * m.head_dim;
	v.data = x + (2 * m.n_heads + m.n_kv_heads) * m.head_dim;
	TRY(cq_batch_new(model, 1, rows, 0, &batch) || cq_step(batch, &seq, &rows, 1));
	for (layer = 0; layer < m.n_layers; layer++) {
		for (i = 0; i < rows * width; i++)	/* an engine projects here */
			x[i] = (float)(i * 2654435761u) / 4e9f;
		TRY(cq_append(seq, layer, &k, &v, rows, NULL));
		TRY(cq_attention(batch, layer, &q, &o, NULL));
	}
	TRY(cq_commit(seq, ids + cq_seq_length(seq), rows) || cq_seal(seq, 5000));
	return cq_close(ctx), free(x), 0;
}
