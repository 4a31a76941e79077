#!/bin/bash
# SPDX-License-Identifier: MIT
#
# The generator of recall and copying that training and measuring share.
set -u
top=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=tests/tap.sh
. "$top/tests/tap.sh"

for python in python3 /usr/bin/python3 ""; do
	"$python" -c 'import numpy' 2>/dev/null && break
done
if [ -z "$python" ]; then
	echo "TAP version 13"
	echo "1..0 # SKIP python3 has no numpy"
	exit 0
fi
dir=$(mktemp -d "${TMPDIR:-/tmp}/cq-test-XXXXXX")
trap 'rm -rf "$dir"' EXIT

# py CODE: with tasks as t and one sequence of recall as ids, at, want
py() {
	PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$top/client/worker/lm/training "$python" -c "
import numpy as np, tasks as t
ids, at, want = t.recall(7, 600, 40, 9, 3)
$1"
}

plan 6
ok "the same seed, the same sequence; another, another" py '
again = t.recall(7, 600, 40, 9, 3)
assert all((a == b).all() for a, b in zip((ids, at, want), again))
assert (ids != t.recall(8, 600, 40, 9, 3)[0]).any()'
ok "600 tokens; every answer stands behind its key, twice" py '
assert ids.dtype == np.uint16 and len(ids) == 600 and at.shape == want.shape == (9, 3)
assert (ids[at + 1] == want).all() and (ids[at[:, 0] - 1] == t.ASK).all()
for p, w in zip(at[:, 0], want):
    first, second = np.flatnonzero(ids == ids[p])
    assert second == p and (ids[first + 1:first + 4] == w).all() and ids[first - 1] == t.PAIR'
ok "no question is asked twice, no answer is a guess" py '
assert len(set(ids[at[:, 0]])) == 9 and len(set(want.ravel().tolist())) == 27
assert (want >= t.FIRST_WORD).all()'
ok "presets have the pairs and questions of their table" py '
for name, (per, questions, words) in t.PRESETS.items():
    got = t.preset(name, 3, 1500)
    want = t.recall(3, 1500, 1500 // per, questions, words)
    assert got[2].shape == (questions, words) and (got[0] == want[0]).all()'
ok "a repeated string predicts itself from its second time on" py '
ids, at, want = t.repeated(5, 64, 10)
assert (ids[10:] == ids[:-10]).all() and (ids[at + 1] == want).all() and at[0] == 10'
ok "what has no room is refused, and why" py '
for n, pairs, queries, why in ((100, 40, 9, "need 147"), (600, 3, 4, "n_queries 4"),
                               (60000, 3000, 1, "words are free")):
    try:
        t.recall(1, n, pairs, queries)
    except ValueError as e:
        assert why in str(e), e
    else:
        raise AssertionError(why)'
