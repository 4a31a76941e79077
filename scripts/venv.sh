#!/bin/sh
# SPDX-License-Identifier: MIT
#
#	venv.sh FOLDER
#
# A virtual environment over Debian's torch and numpy, with what evaluation of
# foreign models and plots need beyond them. Without network, or without torch,
# it says so and does without: what needs it is skipped.
set -u
want='transformers==4.48.3 matplotlib<3.9 contourpy<1.3 numpy<2'
python=${PYTHON:-/usr/bin/python3}
venv=$1

if [ "$(cat "$venv/cq-has" 2>/dev/null)" = "$want" ]; then
	exit 0
fi
if ! "$python" -c 'import torch, numpy' 2>/dev/null; then
	echo "venv: $python has no torch (python3-torch): tests of client/python are skipped"
	exit 0
fi
# shellcheck disable=SC2086
if "$python" -m venv --system-site-packages "$venv" >/dev/null &&
	"$venv/bin/pip" install --quiet --disable-pip-version-check --timeout 20 --retries 1 \
		$want >"$venv/log" 2>&1 &&
	"$venv/bin/python" -c 'import transformers, matplotlib' 2>>"$venv/log"; then
	printf '%s' "$want" >"$venv/cq-has"
else
	echo "venv: no transformers and matplotlib from PyPI ($venv/log): going on without"
fi
exit 0
