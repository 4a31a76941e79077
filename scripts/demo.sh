#!/bin/bash
# SPDX-License-Identifier: MIT
#
#	demo.sh [--gpu UUID] [--small]
#
# make demo: three workers share one coded prefix through a cqd of their own.
#
# Calibrates, starts cqd in a temporary folder, lets worker A publish a prefix
# and B and C attach to it, kills B, measures, checks the figures, and writes
# $O/demo.json, with --gpu demo-gpu.json. Runs beside a system cqd and leaves no process
# and no file.
# As root cqd and the workers run under two uids of their own, else all under
# the caller's. Exit status: 0, or 1 when a figure is not met or a step failed.
#
#	O=dir			build folder (build)
# With --gpu the prefix is in that GPU's memory and attention is computed there, all
# else on the host; figures of the host's memory are left out. --small is less of
# everything, to see whether it works; figures of quality and time are told, not asked.
#
#	CQ_DEMO_GPU=UUID	the same as --gpu
#	CQ_DEMO_NOSHARE=1	workers attach to nothing: must end with 1
#	CQ_DEMO_KEEP=1		leave the temporary folder
set -euo pipefail
export LC_ALL=C		# a point in numbers, for awk and printf

top=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/demo-lib.sh
. "$top/scripts/demo-lib.sh"

build=${O:-$top/build}
prefix_tokens=1728	# 27 pages
positions=255		# scored in each of 2 x 8 continuations of 256 tokens
continuations=8
learn=(--sequences 8 --length 2048)
written=200 answered=96	# tokens of A and B, and of C
repeat=15 measured=64	# of the bench: times, tokens
pace=25		# ms at least for a token of B and C
gpu=${CQ_DEMO_GPU:-}
small=
noshare=()
while [ $# -gt 0 ]; do
	case $1 in
	--gpu)
		gpu=${2:?"--gpu: which? cqctl status and nvidia-smi -L name them"}
		shift
		;;
	--small) small=1 ;;
	*)
		echo "usage: demo.sh [--gpu UUID] [--small]" >&2
		exit 2
		;;
	esac
	shift
done
figures=$build/demo${gpu:+-gpu}.json
if [ -n "$small" ]; then
	prefix_tokens=256 positions=24 continuations=1
	learn=(--sequences 2 --length 1024)
	written=24 answered=24 repeat=3 measured=4 pace=80
fi
[ "${CQ_DEMO_NOSHARE:-0}" = 0 ] || noshare=(--nomatch)
ask_b=$'\n\nWhich process owns the memory of a page?\n'
ask_c=$'\n\nWhat happens to a worker whose neighbour dies?\n'

dir=
trap demo_end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
demo_begin "$build"

say "learn codebooks (text that is not used again)"
learn_start=$(now_ms)
worker dump --lm "$dir/lm" --ids "$dir/lm/calibration.u16" --out "$dir/jobs/acts.st" \
	"${learn[@]}" --threads "$cores"
worker_run "$dir/bin/cqctl" calibrate "$dir/jobs/acts.st" --k 4c8b --v 4c8b \
	-o "$dir/jobs/coded.st" >"$dir/jobs/calibrate.txt" 2>&1 ||
	fail "cqctl calibrate" "$dir/jobs/calibrate.txt"
worker_run "$dir/bin/cqctl" calibrate "$dir/jobs/acts.st" --k fp16 --v fp16 \
	-o "$dir/jobs/fp16.st" >"$dir/jobs/calibrate.txt" 2>&1 ||
	fail "cqctl calibrate" "$dir/jobs/calibrate.txt"
rm -f "$dir/jobs/acts.st"
learn_ms=$(($(now_ms) - learn_start))
say "  $((learn_ms / 1000)) s: 4c8b, 2 bits per channel; and an fp16 model to compare with"

say "start cqd, load both models"
start_cqd
ctl load coded "$dir/jobs/coded.st" >"$dir/jobs/load.txt" 2>&1 ||
	fail "cqctl load" "$dir/jobs/load.txt"
ctl load fp16 "$dir/jobs/fp16.st" >"$dir/jobs/load.txt" 2>&1 ||
	fail "cqctl load" "$dir/jobs/load.txt"
worker tokenize --lm "$dir/lm" --limit "$prefix_tokens" --out "$dir/jobs/prefix.u16" \
	"$dir/jobs/prefix.txt" >/dev/null

say "A reads the documentation, $prefix_tokens tokens, publishes it, and writes"
start_worker A --seed 1 --generate "$written" --hold "${noshare[@]}"
wait_line A end 120
say "  $(num A.json generated) tokens: $(excerpt A)"
ctl --json status >"$dir/jobs/status.json"

say "C alone, undisturbed, for its text"
start_worker C-alone --seed 3 --ask "$ask_c" --generate "$answered" "${noshare[@]}"
wait_end C-alone 60
say "  $(excerpt C-alone)"

say "B and C attach at the same time; each adds its own question"
start_worker B --seed 2 --ask "$ask_b" --generate "$written" --pace "$pace" "${noshare[@]}"
start_worker C --seed 3 --ask "$ask_c" --generate "$answered" --pace "$pace" --hold "${noshare[@]}"
wait_line B first 60
wait_line C first 60
say "  B matched $(num B.json matched), C matched $(num C.json matched) tokens; cqctl status:"
ctl status | sed 's/^/    /'
[ -n "$gpu" ] || sleep 0.5
measure_memory A B C
killed_early=$(grep -c '"event":"end"' "$dir/jobs/C.json" || true)
kill -KILL "${pid[B]}"
wait "${pid[B]}" 2>/dev/null || true
unset "pid[B]"
say "  B killed with SIGKILL while C writes"
wait_line C end 60
[ "$killed_early" = 0 ] || fail "C was done before B was killed" "$dir/jobs/C.json"
same_text=0
[ "$(text C)" != "$(text C-alone)" ] || same_text=1
stop_worker A
stop_worker C

say "time to first token, cold and attached, in one process"
worker bench "${to_cqd[@]}" --model coded --prefix "$dir/jobs/prefix.u16" --ask "$ask_b" \
	--repeat "$repeat" --generate "$measured" "${on_gpu[@]}" "${noshare[@]}" \
	>"$dir/jobs/bench.json"

say "B and C are scored against fp16 caches, $((2 * continuations * positions)) positions"
start_score B 0
start_score C 2048
wait_end B-score 120
wait_end C-score 120

collect
report
