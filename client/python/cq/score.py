# SPDX-License-Identifier: MIT
"""How far a coded cache moves a model's next-token distribution."""
import numpy as np
import torch

from .attention import Coded, Plain

ROWS_AT_ONCE = 512


def reference(model, seqs, first):
    """Log-probabilities [sequence][row][word] of rows first.. on the exact cache."""
    with torch.no_grad():
        return torch.stack([_log_probs(model, s, Plain(), first) for s in seqs])


def _log_probs(model, ids, tap, first):
    logits = model.forward(model.embed(ids[None]), tap, slice(first, -1))
    return logits[0].float().log_softmax(-1)


def _compare(ref, got, targets):
    """KL(ref || got) of each row, equal top word, both losses."""
    kl = torch.empty(len(ref))
    for a in range(0, len(ref), ROWS_AT_ONCE):
        r, g = ref[a:a + ROWS_AT_ONCE], got[a:a + ROWS_AT_ONCE]
        kl[a:a + ROWS_AT_ONCE] = (r.exp() * (r - g)).sum(-1)
    loss = [-x.gather(1, targets[:, None])[:, 0] for x in (ref, got)]
    return kl.clamp(min=0), ref.argmax(-1) == got.argmax(-1), loss[0], loss[1]


def text(model, seqs, ref, first, coder, reader):
    """Figures over the rows first.. of seqs [sequence][token]; ref: reference()."""
    parts = []
    with torch.no_grad():
        for ids, exact in zip(seqs, ref):
            got = _log_probs(model, ids, Coded(coder, reader), first)
            parts.append(_compare(exact, got, ids[first + 1:]))
    kl, top, loss_ref, loss = (torch.cat(x).double() for x in zip(*parts))
    return {"positions": len(kl), "kl_mean": kl.mean().item(),
            "kl_p99": float(np.quantile(kl.numpy(), 0.99)), "top1": top.mean().item(),
            "ppl": loss.mean().exp().item(),
            "ppl_ratio": (loss.mean() - loss_ref.mean()).exp().item()}


def retrieval(model, tasks, tap):
    """Share of questions answered; tasks: (ids, positions, answers).

    positions and answers are [question] or [question][word]: all words must be right.
    """
    right = asked = 0
    with torch.no_grad():
        for ids, positions, answers in tasks:
            ids = torch.as_tensor(np.asarray(ids, np.int64))
            logits = model.forward(model.embed(ids[None]), tap,
                                   torch.as_tensor(np.ravel(positions)))
            hit = logits[0].argmax(-1).numpy() == np.ravel(answers)
            hit = hit.reshape(len(answers), -1).all(-1)
            right, asked = right + int(hit.sum()), asked + len(hit)
    return right / asked
