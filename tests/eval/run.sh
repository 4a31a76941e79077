#!/bin/bash
# SPDX-License-Identifier: MIT
#
# make eval: what each coding costs in quality, on the small language model.
# One JSON line per coding and reader in $O/eval.json; plots and tables in
# $O/eval; words on standard error. SIZE=quick measures on less. A run that was
# ended goes on where it was, from $O/eval/work.
#
# First in Python, through libcq's codec, with other codings beside it
# (suite.py; needs torch): on the small model, and on one that can recall, that of
# client/worker/lm/recall or of the folder that YARDSTICK names; YARDSTICK= leaves it out. Then
# on a real cqd, with workers:
#
# reader "attached": 1,728 tokens of held-out text are shared codes, the 256
# behind them are the reader's own; 16 continuations.
# reader "published": each page of 2,048 held-out tokens is scored by a reader
# attached to all pages before it, with at most 63 tokens of its own; 8 texts.
set -eu

O=${O:-build}
top=$(cd "$(dirname "$0")/../.." && pwd)
lm=$top/client/worker/lm
dir=$(mktemp -d "${TMPDIR:-/tmp}/cq-eval.XXXXXX")
work=$O/eval/work
acts=$work/small/plain.st	# with gradients
cqd=
codings=${CODINGS:-fp16 4c8b}
recall=$O/eval/recall
yardstick=${YARDSTICK-$recall}
export O OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
export CQ_LIBRARY=$O/libcq.so PYTHONPATH=$top/client/python PYTHONDONTWRITEBYTECODE=1

finish() {
	[ -z "$cqd" ] || kill -KILL "$cqd" 2>/dev/null || true
	wait 2>/dev/null || true
	rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM

# The first interpreter that has torch.
find_python() {
	local p

	for p in "${PYTHON:-}" "$O/venv/bin/python" python3 /usr/bin/python3; do
		[ -n "$p" ] && "$p" -c 'import torch' 2>/dev/null && echo "$p" && return 0
	done
	return 1
}

in_python() {
	local python

	if ! python=$(find_python); then
		echo "eval: no torch (python3-torch): only the rows of a real cqd" >&2
		return 0
	fi
	if [ "$yardstick" = "$recall" ]; then
		"$python" "$lm/training/pack.py" unpack "$lm/recall" "$recall"
	fi
	"$python" "$top/tests/eval/suite.py" "$lm" "$work" "$O/eval.json" "$O/eval" \
		${yardstick:+"$yardstick"}
}

calibrate() {
	echo "eval: codebooks for $1" >&2
	"$O/cqctl" calibrate "$acts" --k "$1" --v "$1" -o "$dir/$1.st" \
		>"$dir/log" 2>&1 || { cat "$dir/log" >&2; exit 1; }
	printf '[model %s]\npath = %s\n' "$1" "$dir/$1.st" >>"$dir/cqd.conf"
}

start_cqd() {
	local i

	"$O/cqd" --config "$dir/cqd.conf" </dev/null >"$dir/cqd.log" 2>&1 &
	cqd=$!
	for ((i = 0; i < 200; i++)); do
		! "$O/cqctl" --socket "$dir/admin.sock" ping >/dev/null 2>&1 || return 0
		sleep 0.05
	done
	cat "$dir/cqd.log" >&2
	exit 1
}

# Effective bits: codes, 4 sinks and what a reader has of its own in fp16.
# line CODING READER PREFIX OWN: score's JSON on stdin, eval.json's on stdout
line() {
	LC_ALL=C awk -v coding="$1" -v reader="$2" -v prefix="$3" -v own="$4" \
		-v commit="$(git -C "$top" rev-parse --short=12 HEAD 2>/dev/null || echo unknown)" '
	function field(name) {
		match($0, "\"" name "\": *[0-9.e+-]*")
		text = substr($0, RSTART, RLENGTH)
		sub(/.*: */, "", text)
		return text
	}
	{
		split(coding, c, /c|b/)
		bits = coding == "fp16" ? 16 : c[2] / c[1]
		bits = ((prefix - 4) * bits + (4 + own) * 16) / (prefix + own)
		printf "{\"family\": \"cq\", \"method\": \"%s/%s on cqd\", \"reader\": \"%s\", ",
			coding, coding, reader
		printf "\"model\": \"small\", \"effective_bits\": %.4f, ", bits
		printf "\"options\": {\"label\": \"cqd\"}, \"ppl_ratio\": %.6f, ",
			field("ppl") / field("ppl_reference")
		printf "\"kl_mean\": %s, \"kl_p99\": %s, \"top1\": %s, ", field("kl_mean"),
			field("kl_p99"), field("top1")
		printf "\"retrieval\": null, \"commit\": \"%s\", \"seed\": 1, ", commit
		printf "\"positions\": %s, \"ppl\": %s}\n", field("positions"), field("ppl")
	}'
}

# score CODING READER PREFIX OWN OPTION...
score() {
	local coding=$1 reader=$2 prefix=$3 own=$4

	shift 4
	echo "eval: $coding on cqd, $reader reader" >&2
	"$O/cq-worker" score --lm "$lm" --socket "$dir/cqd.sock" --model "$coding" \
		--reference fp16 --ids "$lm/heldout.u16" "$@" |
		line "$coding" "$reader" "$prefix" "$own" | tee -a "$O/eval.json"
}

on_cqd() {
	local c

	: >"$dir/empty.u16"
	head -c $((2 * 1728)) "$lm/heldout.u16" >"$dir/prefix.u16"
	cat >"$dir/cqd.conf" <<-END
	[daemon]
	socket = $dir/cqd.sock
	admin_socket = $dir/admin.sock
	pool_bytes = 256M
	[namespace eval]
	uid = $(id -u)
	END
	if [ ! -e "$acts" ]; then
		acts=$dir/acts.st
		"$O/cq-worker" dump --lm "$lm" --ids "$lm/calibration.u16" \
			--sequences "${SEQUENCES:-12}" --length 2048 --threads "$(nproc)" \
			--out "$acts"
	fi
	for c in $codings; do
		calibrate "$c"
	done
	case " $codings " in
	*" fp16 "*) ;;
	*) calibrate fp16 ;;
	esac
	start_cqd
	for c in $codings; do
		"$O/cq-worker" run --lm "$lm" --socket "$dir/cqd.sock" --model "$c" \
			--prefix "$dir/prefix.u16" --generate 1 >/dev/null
		score "$c" attached 1728 128 --prefix "$dir/prefix.u16" --skip 2048 \
			--sequences 16 --length 256
		score "$c" published 992 32 --prefix "$dir/empty.u16" --skip 8192 --sequences 8 \
			--length 2048 --published
	done
}

: >"$O/eval.json"
in_python
on_cqd
rm -rf "$work"
