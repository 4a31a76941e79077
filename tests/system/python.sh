#!/bin/sh
# SPDX-License-Identifier: MIT
# TIMEOUT=300
#
# client/python: dump, evaluation, other codings; tests/eval/run.py. The package
# needs torch; models other than the small one need transformers.
top=$(cd "$(dirname "$0")/../.." && pwd)
export O="${O:-$top/build}" OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
export CQ_LIBRARY="$O/libcq.so"
export PYTHONPATH="$top/client/python" PYTHONDONTWRITEBYTECODE=1

if [ -n "${SANITIZE:-}" ]; then
	echo "1..0 # SKIP Python does not load a library with a sanitizer"
	exit 0
fi
for python in "${PYTHON:-}" "$O/venv/bin/python" python3 /usr/bin/python3; do
	[ -n "$python" ] || continue
	if "$python" -c 'import torch' 2>/dev/null; then
		exec "$python" "$top/tests/eval/run.py"
	fi
done
echo "1..0 # SKIP no torch: install python3-torch"
