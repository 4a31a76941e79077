#!/bin/bash
# SPDX-License-Identifier: MIT
#
# make eval: what each coding costs in quality, on the small language model and
# a real cqd. One JSON line per coding and reader on standard output and in
# $O/eval.json; words on standard error.
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
cqd=
codings=${CODINGS:-fp16 2c8b 4c8b 8c8b}

finish() {
	[ -z "$cqd" ] || kill -KILL "$cqd" 2>/dev/null || true
	wait 2>/dev/null || true
	rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM

calibrate() {
	echo "eval: codebooks for $1" >&2
	"$O/cqctl" calibrate "$dir/acts.st" --k "$1" --v "$1" -o "$dir/$1.st" \
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

# score CODING READER OPTION...
score() {
	local coding=$1 reader=$2 line

	shift 2
	echo "eval: $coding, $reader reader" >&2
	line=$("$O/cq-worker" score --lm "$lm" --socket "$dir/cqd.sock" --model "$coding" \
		--reference fp16 --ids "$lm/heldout.u16" "$@")
	printf '{"bench":"quality","k":"%s","v":"%s","reader":"%s",%s\n' \
		"$coding" "$coding" "$reader" "${line#\{}" | tee -a "$O/eval.json"
}

: >"$O/eval.json"
: >"$dir/empty.u16"
head -c $((2 * 1728)) "$lm/heldout.u16" >"$dir/prefix.u16"
cat >"$dir/cqd.conf" <<END
[daemon]
socket = $dir/cqd.sock
admin_socket = $dir/admin.sock
pool_bytes = 256M
[namespace eval]
uid = $(id -u)
END
"$O/cq-worker" dump --lm "$lm" --ids "$lm/calibration.u16" --sequences "${SEQUENCES:-12}" \
	--length 2048 --threads "$(nproc)" --out "$dir/acts.st"
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
	score "$c" attached --prefix "$dir/prefix.u16" --skip 2048 --sequences 16 --length 256
	score "$c" published --prefix "$dir/empty.u16" --skip 8192 --sequences 8 --length 2048 \
		--published
done
