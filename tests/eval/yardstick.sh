#!/bin/bash
# SPDX-License-Identifier: MIT
#
# make yardstick: trains a language model that recalls keys and values from its context,
# from the small one's weights and this machine's documentation, into $O/yardstick.
# YARDSTICK_SECONDS= (3600) of training on all cores; Documentation/quality.md
# says what came of it.
set -eu

O=${O:-build}
top=$(cd "$(dirname "$0")/../.." && pwd)
training=$top/client/worker/lm/training
out=$O/yardstick
seconds=${YARDSTICK_SECONDS:-3600}
python=${PYTHON:-/usr/bin/python3}
export PYTHONDONTWRITEBYTECODE=1

if ! "$python" -c 'import torch, numpy' 2>/dev/null; then
	echo "yardstick: $python has no torch (python3-torch)" >&2
	exit 1
fi
mkdir -p "$out"
[ -s "$out/tok.bin" ] || {
	echo "yardstick: gathering text" >&2
	"$python" "$training/corpus.py" --out "$out/tok.bin"
}
echo "yardstick: training for $seconds s" >&2
"$python" "$training/train.py" recall --seconds "$seconds" --workers "$(nproc)" \
	--init "$training/../model.safetensors" --text "$out/tok.bin" --save "$out"
echo "yardstick: measuring" >&2
"$python" "$training/measure.py" --model "$out"
