#!/bin/bash
# SPDX-License-Identifier: MIT
# shellcheck disable=SC2154,SC2034 # variables shared with demo.sh
#
# What demo.sh is made of: processes under their uids, waiting, figures.

cqd_uid=64110		# as root: no entry in passwd is needed
worker_uid=64111
declare -A pid		# by name: processes that this script started
started=$(date +%s)

say() {
	echo "demo: $*"
}

# fail WHAT [FILE]: the last lines of the file say why
fail() {
	say "failed: $1" >&2
	[ $# -lt 2 ] || tail -n 5 "$2" 2>/dev/null | sed 's/^/    /' >&2
	[ -z "${dir:-}" ] || tail -n 5 "$dir/jobs/cqd.log" 2>/dev/null | sed 's/^/    cqd: /' >&2
	exit 1
}

now_ms() {
	date +%s%3N
}

# --- begin and end ---

# Programs are copied: the build folder may be unreadable to the two uids.
demo_begin() {
	local f

	for f in cqd cqctl cq-worker libcq.so.0; do
		[ -e "$1/$f" ] || fail "$1/$f is missing: run make first"
	done
	[ -w "$1" ] || fail "cannot write to $1: name a folder of your own with O="
	cores=$(nproc)
	skipped=0
	two_uids=
	[ "$(id -u)" != 0 ] || [ -n "${CQ_COMMIT:-}" ] || two_uids=1
	# Named before it is made, so that demo_end removes it whenever it comes.
	dir=$(mktemp -u "${TMPDIR:-/tmp}/cq-demo.XXXXXX")
	if ! mkdir -m 711 "$dir"; then
		dir=
		fail "no temporary folder"
	fi
	mkdir "$dir/bin" "$dir/lm" "$dir/run" "$dir/jobs"
	cp -L "$1/cqd" "$1/cqctl" "$1/cq-worker" "$1/libcq.so.0" "$dir/bin"
	[ -z "${CQ_RUN:-}" ] || for f in cqd cqctl cq-worker; do
		mv "$dir/bin/$f" "$dir/bin/$f.prog"
		printf '#!/bin/sh\nexec %s %s "$@"\n' "$CQ_RUN" "$dir/bin/$f.prog" >"$dir/bin/$f"
		chmod 755 "$dir/bin/$f"
	done
	cp "$top/client/worker/lm"/*.{json,safetensors,u16} "$dir/lm"
	cat "$top"/Documentation/{formats,protocol}.md >"$dir/jobs/prefix.txt"
	chmod -R a+rX "$dir/bin" "$dir/lm" "$dir/run" "$dir/jobs"
	if [ -n "$two_uids" ]; then
		chown "$cqd_uid:$cqd_uid" "$dir/run"
		chown "$worker_uid:$worker_uid" "$dir/jobs"
		members=$worker_uid
	else
		members=$(id -u)
		skipped=1
		say "skipped: two uids for cqd and the workers need root, and no bundle;" \
			"all run as uid $members"
	fi
	[ -z "$two_uids" ] || (as "$worker_uid" test -x "$dir/bin/cqd") ||
		fail "no other user can run programs in ${dir%/*}: set TMPDIR, to /tmp say"
	to_cqd=(--lm "$dir/lm" --socket "$dir/run/cqd.sock")
	on_gpu=()
	[ -z "$gpu" ] || on_gpu=(--gpu "$gpu")
	# A driver of the build's own, which is no GPU.
	if [ -n "$gpu" ] && [ -n "${CQ_EMU_STATE:-}" ]; then
		cp -L "$1"/tests/emu/{libcuda.so.1,libcqk_emu.so} "$dir/bin"
		chmod a+rx "$dir/bin"/*.so*
		export LD_LIBRARY_PATH=$dir/bin${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
	fi
}

demo_end() {
	local rc=$? name

	trap '' INT TERM HUP
	for name in "${!pid[@]}"; do
		kill -KILL "${pid[$name]}" 2>/dev/null || true
	done
	wait 2>/dev/null || true
	[ -z "$dir" ] || [ -n "${CQ_DEMO_KEEP:-}" ] || rm -rf "$dir"
	exit "$rc"
}

# --- processes ---

# as UID COMMAND...: replaces this shell. It dies with the script, however that
# ends.
as() {
	local uid=$1

	shift
	if [ -n "$two_uids" ]; then
		exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --pdeathsig KILL "$@"
	fi
	exec setpriv --pdeathsig KILL "$@"
}

worker_run() {
	(cd "$dir/jobs" && as "$worker_uid" "$@")
}

worker() {
	worker_run "$dir/bin/cq-worker" "$@" 2>"$dir/jobs/worker.err" ||
		fail "cq-worker $1" "$dir/jobs/worker.err"
}

ctl() {
	(as "$cqd_uid" "$dir/bin/cqctl" --socket "$dir/run/admin.sock" "$@")
}

start_cqd() {
	local i

	cat >"$dir/run/cqd.conf" <<-END
		[daemon]
		socket = $dir/run/cqd.sock
		admin_socket = $dir/run/admin.sock
		socket_mode = 0666
		pool_bytes = 256M
		[namespace demo]
		uid = $members
	END
	[ -z "$gpu" ] || printf '[gpu demo]\nuuid = %s\npool_bytes = 64M\n' "$gpu" \
		>>"$dir/run/cqd.conf"
	chmod 644 "$dir/run/cqd.conf"
	(as "$cqd_uid" "$dir/bin/cqd" --config "$dir/run/cqd.conf") \
		</dev/null >"$dir/jobs/cqd.log" 2>&1 &
	pid[cqd]=$!
	for ((i = 0; i < 200; i++)); do
		! ctl ping >/dev/null 2>&1 || return 0
		kill -0 "${pid[cqd]}" 2>/dev/null || break
		sleep 0.05
	done
	fail "cqd does not answer"
}

# start_worker NAME OPTION...: cq-worker run; its lines go to NAME.json
start_worker() {
	local name=$1

	shift
	# One pipe that nobody writes: whoever reads it waits.
	if [ -z "${hold_fd:-}" ]; then
		mkfifo "$dir/jobs/hold"
		exec {hold_fd}<>"$dir/jobs/hold"
	fi
	: >"$dir/jobs/$name.json"
	(cd "$dir/jobs" && as "$worker_uid" "$dir/bin/cq-worker" run "${to_cqd[@]}" \
		--model coded --prefix "$dir/jobs/prefix.u16" --name "$name" \
		--temperature 0.8 "${on_gpu[@]}" "$@") \
		<"$dir/jobs/hold" {hold_fd}>&- >"$dir/jobs/$name.json" 2>"$dir/jobs/$name.err" &
	pid[$name]=$!
}

# start_score NAME SKIP: scores continuations behind SKIP held-out tokens
start_score() {
	(cd "$dir/jobs" && as "$worker_uid" "$dir/bin/cq-worker" score "${to_cqd[@]}" \
		--model coded --reference fp16 --prefix "$dir/jobs/prefix.u16" --name "$1" \
		--ids "$dir/lm/heldout.u16" --skip "$2" \
		--sequences "$continuations" --length $((positions + 1)) \
		--kl "$dir/jobs/$1.kl" "${on_gpu[@]}" "${noshare[@]}") \
		</dev/null >"$dir/jobs/$1-score.json" 2>"$dir/jobs/$1-score.err" &
	pid[$1-score]=$!
}

# wait_line NAME EVENT SECONDS
wait_line() {
	local i

	for ((i = 0; i < $3 * 50; i++)); do
		! grep -q "\"event\":\"$2\"" "$dir/jobs/$1.json" || return 0
		kill -0 "${pid[$1]}" 2>/dev/null || fail "worker $1 ended" "$dir/jobs/$1.err"
		sleep 0.02
	done
	fail "worker $1 said nothing for $3 s" "$dir/jobs/$1.err"
}

# wait_end NAME SECONDS
wait_end() {
	local i rc=0

	for ((i = 0; i < $2 * 50; i++)); do
		if ! kill -0 "${pid[$1]}" 2>/dev/null; then
			wait "${pid[$1]}" || rc=$?
			unset "pid[$1]"
			[ "$rc" = 0 ] || fail "worker $1 ended with $rc" "$dir/jobs/$1.err"
			return 0
		fi
		sleep 0.02
	done
	fail "worker $1 did not end within $2 s" "$dir/jobs/$1.err"
}

stop_worker() {
	kill -TERM "${pid[$1]}" 2>/dev/null || true
	wait "${pid[$1]}" 2>/dev/null || true
	unset "pid[$1]"
}

# --- figures ---

# num FILE KEY: the last number or string of that name in flat JSON
num() {
	sed -n 's/.*"'"$2"'": *"\{0,1\}\([^,}"]*\).*/\1/p' "$dir/jobs/$1" | tail -n 1
}

text() {
	sed -n 's/.*"text":"\(.*\)".*/\1/p' "$dir/jobs/$1.json" | tail -n 1
}

excerpt() {
	text "$1" | cut -c 1-60
}

# smaps UID PID FIELD: its sum over the mappings of segments, in bytes. Asked as
# the process's own uid: root in a container may not look at others.
smaps() {
	# shellcheck disable=SC2016 # awk has fields too
	(as "$1" awk -v field="$3:" '
		/^[0-9a-f]+-[0-9a-f]+ / { ours = /memfd:cq-seg/ }
		ours && $1 == field { kb += $2 }
		END { printf "%d\n", kb * 1024 }' "/proc/$2/smaps")
}

# measure_memory WORKER...: Pss of the pool over cqd and them, their smallest Rss
measure_memory() {
	local name bytes

	if [ -n "$gpu" ]; then
		pool_pss=null least_rss=null
		ctl --json status >"$dir/jobs/status-shared.json"
		return
	fi
	pool_pss=$(smaps "$cqd_uid" "${pid[cqd]}" Pss)
	least_rss=
	for name in "$@"; do
		bytes=$(smaps "$worker_uid" "${pid[$name]}" Pss)
		pool_pss=$((pool_pss + bytes))
		bytes=$(smaps "$worker_uid" "${pid[$name]}" Rss)
		[ -n "$least_rss" ] && [ "$least_rss" -le "$bytes" ] || least_rss=$bytes
	done
	ctl --json status >"$dir/jobs/status-shared.json"
}

# KL of both readers together: mean, 99th percentile, share of equal top tokens
score_figures() {
	sort -g "$dir/jobs/B.kl" "$dir/jobs/C.kl" | awk '
		{ kl[NR] = $1; sum += $1; same += $2 }
		END {
			if (!NR) exit 1
			printf "kl_mean=%.6f kl_p99=%.6f top1=%.4f scored=%d\n",
				sum / NR, kl[int((NR - 1) * 0.99) + 1], same / NR, NR
		}'
}

collect() {
	local scores

	scores=$(score_figures) || fail "nothing was scored"
	eval "$scores"
	matched=$(num bench.json matched_tokens)
	cold=$(num bench.json ttft_cold_ms | awk '{ printf "%.2f", $1 }')
	attached=$(num bench.json ttft_attached_ms | awk '{ printf "%.2f", $1 }')
	speed=$(num bench.json tokens_per_s | awk '{ printf "%.1f", $1 }')
	fp16_bytes=$(num bench.json bytes_per_token_fp16)
	sequence_bytes=$(num bench.json sequence_bytes)
	codebook_bytes=$(num status.json codebook_bytes)
	published=$(num A.json sealed)
	coded_bytes=$(awk -v pool="$(num status.json pool_used)" \
		-v index_="$(num status.json index_used)" -v n="$published" \
		'BEGIN { printf "%.1f", (pool + index_) / n }')
	pages_bytes=$(num status-shared.json pool_used)
	prefix_bytes=$(num bench.json shared_bytes)
	cat >"$dir/jobs/demo.json" <<-END
		{"matched_tokens": $matched, "ttft_cold_ms": $cold,
		 "ttft_attached_ms": $attached, "bytes_per_token_fp16": $fp16_bytes,
		 "bytes_per_token": $coded_bytes, "sequence_bytes": $sequence_bytes,
		 "pool_pss_bytes": $pool_pss, "pages_bytes": $pages_bytes,
		 "kl_mean": $kl_mean, "kl_p99": $kl_p99, "top1": $top1,
		 "tokens_per_s": $speed}
	END
	cp "$dir/jobs/demo.json" "$figures"
}

# gate CONDITION OK TEXT...: one line of the table
gate() {
	local mark=ok

	if ! awk "BEGIN { exit !($1) }"; then
		mark=FAILED
		failed=$((failed + 1))
	fi
	checks=$((checks + 1))
	printf '  %-52s %-20s %s\n' "$2" "$3" "$mark"
}

report_slots() {
	gate "$prefix_bytes * 6 <= $fp16_bytes * $matched && $prefix_bytes > 0" \
		"bytes of the prefix: fp16, its slots on the GPU" \
		"$((fp16_bytes * matched)), $prefix_bytes"
}

# What only memory of the host can be asked.
report_memory() {
	# sinks and the index are a larger share of a short prefix
	gate "$coded_bytes * ${small:+0.8 *} 6 <= $fp16_bytes" \
		"bytes per token: fp16, shared pages and index" "$fp16_bytes, $coded_bytes"
	gate "$pool_pss <= 1.05 * $pages_bytes && $pool_pss > 0" \
		"Pss of the pool in cqd, A, B, C; pages in use" "$pool_pss, $pages_bytes"
	gate "$least_rss >= $prefix_bytes && $prefix_bytes > 0" \
		"smallest Rss of a worker; prefix" "$least_rss, $prefix_bytes"
}

report() {
	failed=0
	checks=0
	echo
	gate "$matched >= $prefix_tokens - 128" "tokens found published" "$matched"
	[ -n "$small" ] || gate "$cold >= 5 * $attached" "first token: cold, attached" \
		"$(printf '%.1f, %.1f ms' "$cold" "$attached")"
	if [ -n "$gpu" ]; then
		report_slots
	else
		report_memory
	fi
	gate "$kl_mean <= ${small:+10 *} 0.03" "KL to fp16: mean, p99 of $scored positions" \
		"$(printf '%.4f, %.3f' "$kl_mean" "$kl_p99")"
	gate "$top1 >= ${small:+0.5 *} 0.88" "same most likely token as fp16" "$top1"
	gate "$same_text" "C's text after B was killed" \
		"$([ "$same_text" = 1 ] && echo unchanged || echo CHANGED)"
	printf '  %-52s %s\n' "codebooks, beside the pages" "$codebook_bytes bytes" \
		"generation" "$(printf '%.0f' "$speed") tokens/s" \
		"time" "$(($(date +%s) - started)) s"
	[ -z "$gpu" ] || printf '  %-52s %s\n' "attention on" "$gpu"
	echo
	say "figures are in ${figures#"$top"/}"
	say "$((checks - failed)) of $checks figures met, $skipped skipped"
	[ "$failed" = 0 ]
}
