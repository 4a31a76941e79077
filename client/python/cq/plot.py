# SPDX-License-Identifier: MIT
"""Plots of eval.json and figures.json, as SVG files."""
import os

import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt     # noqa: E402

from .curves import OURS, PEERS, front, pick      # noqa: E402

FIELDS = {"kl_mean": "KL to fp16, mean (nats)", "kl_p99": "KL to fp16, 99th percentile",
          "ppl_ratio": "perplexity / fp16's", "retrieval": "recall at 1,500 tokens"}
COLOURS = dict(zip(OURS + PEERS, ("black", "#7f7f7f", "#d62728", "#1f77b4", "#2ca02c", "#9467bd",
                                     "#ff7f0e")))

plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "cq", "font.size": 9,
                     "axes.grid": True, "grid.alpha": 0.3})


def _save(fig, folder, name):
    fig.tight_layout()
    fig.savefig(os.path.join(folder, name), metadata={"Date": None, "Creator": None})
    plt.close(fig)


def _points(lines, field):
    """The best lines of a family; all of them where more is not less error."""
    if field == "retrieval":
        return sorted((x["effective_bits"], x[field]) for x in lines if x[field] is not None)
    return front(lines, field)


def curves(lines, folder):
    """One file for each figure: attached readers, the models that have it two in a row."""
    for field, label in FIELDS.items():
        models = sorted({x["model"] for x in pick(lines, reader="attached")
                         if x[field] is not None})
        if not models:
            continue
        rows = (len(models) + 1) // 2
        fig, axes = plt.subplots(rows, 2, figsize=(9, 3.4 * rows), squeeze=False, sharey=True)
        axes[-1][-1].set_visible(len(models) % 2 == 0)
        for ax, model in zip(axes.flat, models):
            for family, colour in COLOURS.items():
                mine = pick(lines, model=model, reader="attached", family=family)
                points = _points(mine, field)
                if points:
                    ax.plot(*zip(*points), marker="o", ms=3, color=colour, label=family,
                            lw=2 if family in OURS else 1)
            ax.set(title=f"{model}, attached reader", xlabel="effective bits per channel",
                   xlim=(1, 5))
            if field.startswith("kl"):
                ax.set_yscale("log")
            elif field == "ppl_ratio":
                ax.set_ylim(0.98, 1.15)
            if ax.lines:
                ax.legend(fontsize=7)
        for row in axes:
            row[0].set_ylabel(label)
        _save(fig, folder, f"quality-{field.replace('_', '-')}.svg")


def figures(lines, folder):
    """Sensitivity of the layers, and entropies."""
    found = [x for x in lines if x["figure"] == "sensitivity"]
    fig, ax = plt.subplots(figsize=(4.5, 3))
    for i, kv in enumerate("kv"):
        mine = [x for x in found if x["kv"] == kv]
        ax.bar([x["layer"] + 0.4 * i for x in mine], [x["value"] for x in mine], 0.4,
               label={"k": "keys", "v": "values"}[kv])
    ax.set(xlabel="layer", ylabel="sum of g² (x - x')², share")
    ax.legend()
    _save(fig, folder, "quality-sensitivity.svg")
    found = [x for x in lines if x["figure"] == "entropy"]
    fig, ax = plt.subplots(figsize=(4.5, 3))
    for kv, colour in (("k", "black"), ("v", "#1f77b4")):
        joint = [x["bits"] for x in found if x["kv"] == kv]
        if joint:
            n = range(1, len(joint[0]) + 1)
            mean = [sum(b[i - 1] for b in joint) / len(joint) for i in n]
            name = {"k": "keys", "v": "values"}[kv]
            ax.plot(n, mean, marker="o", color=colour, label=f"{name}, joint")
            ax.plot(n, [mean[0] * i for i in n], ls="--", color=colour,
                    label=f"{name}, sum of marginals")
    ax.set(xlabel="neighbouring channels", ylabel="entropy (bits)", xticks=[1, 2, 3, 4])
    ax.legend(fontsize=7)
    _save(fig, folder, "quality-entropy.svg")
