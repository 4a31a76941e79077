#!/bin/bash
# SPDX-License-Identifier: MIT
#
# TIMEOUT=300
# make gpu-bench on the emulation: every kind of measurement runs and its lines are whole.
# What is found here says nothing about GPUs.
set -u
top=${TOP:-$(cd "$(dirname "$0")/../.." && pwd)}
O=${O:-$top/build}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
json=$O/gpu-bench-emulated.json
# shellcheck source=tests/tap.sh
. "$top/tests/tap.sh"

bench() {
	rm -f "$json"
	GPU_MIB=24 O=$O "$top/scripts/gpu-bench.sh" "$@" | tee "$dir/said"
	return "${PIPESTATUS[0]}"
}

# Each is one object of words, numbers and null, and says that it was emulated.
lines_are_whole() {
	local value='("[^"\\]*"|-?[0-9.]+(e[-+][0-9]+)?|null|true|false)'

	! grep -vE "^\{\"bench\":\"[a-z]+\"(,\"[a-z0-9_]+\":$value)*\}$" "$json" &&
		[ "$(grep -c '"emulated":true' "$json")" = "$(wc -l <"$json")" ]
}

# of KIND COUNT: so many lines, with the fields that follow.
of() {
	local kind=$1 count=$2 field

	shift 2
	grep "\"bench\":\"$kind\"" "$json" >"$dir/lines"
	[ "$(wc -l <"$dir/lines")" = "$count" ] || return 1
	for field in device driver date commit shape "$@"; do
		! grep -v "\"$field\":" "$dir/lines" || return 1
	done
}

# Three codings, two ways to codes, two kinds of keys, two of sharing, two variants, of rotated
# keys three, and for a prefix two more; one case of 10 bits by two, two of bytes by three;
# step: fp16, too. Of the toy there is time and room for all.
kinds() {
	! grep '"bench":"skipped"' "$json" &&
		of append 3 config encode rows ring_layers us ns_token &&
		of prefill 6 config encode rows ring_layers us ns_token &&
		of step 12 config gib context batch sequences_held us tokens_s &&
		of decode 50 config keys sharing variant batch rows context ring_layers us p10_us \
			p90_us baseline baseline_us baseline_hbm_share baseline_ring_layers \
			baseline_rel_err versus vs_fp16 fp8 fp8_us fp8_hbm_share fp8_ring_layers \
			fp8_rel_err fp8_versus vs_fp8 hbm_share shared_share issue_share \
			model_us model_wall clock_ghz sms rel_err
}

# What the kernels computed was right, and both sides of each ratio were measured.
results_are_right() {
	awk -F'[:,]' '/"bench":"decode"/ {
		n++
		for (i = 1; i < NF; i++)
			if ($i ~ /^"(baseline_|fp8_)?rel_err"$/ &&
			    !($(i + 1) + 0 > 0 && $(i + 1) + 0 < 2e-3))
				bad = 1
			else if ($i ~ /^"((baseline_|fp8_)?us|vs_fp(16|8))"$/ &&
				 !($(i + 1) + 0 > 0))
				bad = 1
	}
	END { exit bad || !n }' "$json"
}

# A quantile is where it belongs, and a ratio is that of the times beside it.
sums_are_right() {
	awk '
	function num(key,	at, x) {
		at = index($0, "\"" key "\":")
		x = substr($0, at + length(key) + 3)
		return x + 0
	}
	/"bench":"decode"/ {
		n++
		if (num("p10_us") > num("us") || num("us") > num("p90_us"))
			exit bad = 1
		ratio = num("baseline_us") / num("us") / num("vs_fp16")
		if (ratio < 0.999 || ratio > 1.001)
			exit bad = 1
		ratio = num("fp8_us") / num("us") / num("vs_fp8")
		if (ratio < 0.999 || ratio > 1.001)
			exit bad = 1
	}
	END { exit bad || !n }' "$json"
}

# By hand: what a token and kv head of a row of the model takes, of four sequences of 256 tokens.
model_is_applied() {
	local clocks

	clocks=$(sed -n '/FEW, "4c8b", true, 4,/{ n; s/^[^0-9]*\([0-9.]*\).*/\1/p; }' \
		"$top/tests/gpu/bench_clocks.h")
	awk -v clocks="$clocks" '
	function num(key,	at, x) {
		at = index($0, "\"" key "\":")
		x = substr($0, at + length(key) + 3)
		return x + 0
	}
	/"4c8b","keys":"pre-rope","sharing":"private".*"variant":"few"/ {
		n++
		ratio = num("model_us") * num("sms") * num("clock_ghz") * 1e3 / (1024 * clocks)
		bad = bad || !/"model_wall":"shared"/ || ratio < 0.999 || ratio > 1.001
		ratio = num("shared_share") * num("us") / num("model_us")
		bad = bad || ratio < 0.999 || ratio > 1.001
	}
	/"config":"8c10b".*"model_wall":"issue"/ || /"prefix".*"wgmma".*"model_us":[0-9]/ { more++ }
	END { exit bad || n != 1 || more < 4 }' "$json"
}

# A kernel of others counts if it is faster than ours, where it computes the same.
others_count() {
	printf '%s\n' "magic fp16 private toy 4 256 0.5" "slow fp16 prefix toy 4 256 1e9" \
		"trick fp8 prefix toy 4 256 0.25" >"$dir/others"
	LD_LIBRARY_PATH=$O/tests/emu "$O/tests/gpu/gpu_bench" --emulated --size 24 \
		--baselines "$dir/others" >"$dir/json" || return 1
	grep '"sharing":"private"' "$dir/json" | grep -c '"baseline":"magic","baseline_us":0.5,' |
		grep -x 23 &&
		grep '"sharing":"prefix"' "$dir/json" | grep -c '"fp8":"trick","fp8_us":0.25,' |
		grep -x 27 &&
		! grep '"sharing":"prefix"' "$dir/json" | grep -E 'magic|slow' &&
		! grep '"sharing":"private"' "$dir/json" | grep trick
}

table_and_plot() {
	grep '^toy .* few ' "$dir/said" && grep '^toy .* 8c10b .* slices ' "$dir/said" &&
		grep '^toy .* prefix .* books ' "$dir/said" &&
		! grep '^toy .* private .* books ' "$dir/said" &&
		grep '^prefill  toy .* near 128 rows' "$dir/said" &&
		grep 'emulated: no GPU was measured' "$dir/said" &&
		[ "$(grep -c '<rect' "${json%.json}.svg")" = 50 ] &&
		tail -n 1 "${json%.json}.svg" | grep -x '</svg>'
}

# What there is no time for is named: 9 appends, 12 steps, 15 cases of decode.
in_time() {
	LD_LIBRARY_PATH=$O/tests/emu timeout 20 "$O/tests/gpu/gpu_bench" --emulated --size 24 \
		--seconds 1 >"$dir/json" || return 1
	grep -c '"bench":"skipped"' "$dir/json" | grep -x 36 &&
		! grep -v '"why":"time"}$' "$dir/json" &&
		[ "$(grep -c '"what":"decode","config":"[248]c[0-9]*b[-i8]*","keys":"[a-z-]*",' \
			"$dir/json")" = 15 ] &&
		awk -f "$top/scripts/gpu-bench.awk" "$dir/json" >"$dir/table" &&
		grep '^skipped  toy, time: 36 rows' "$dir/table"
}

# A call that does not return ends its process, and what was measured before it stays.
ended() {
	CQ_EMU_FAIL=cuGraphLaunch:4:-1 LD_LIBRARY_PATH=$O/tests/emu timeout 40 \
		"$O/tests/gpu/gpu_bench" --emulated --size 24 --seconds 8 >"$dir/json" || return 1
	grep '"bench":"append"' "$dir/json" && grep '"why":"ended"}$' "$dir/json" &&
		grep '"why":"not reached"}$' "$dir/json"
}

no_gpu() {
	mkdir -p "$dir/tests/gpu"
	ln -sf "$O/tests/gpu/gpu_bench" "$dir/tests/gpu/gpu_bench"
	local emu=$O/tests/emu

	LD_LIBRARY_PATH=$emu O=$dir "$top/scripts/gpu-bench.sh" | tee "$dir/said2"
	grep "no GPU: nothing was measured" "$dir/said2" && [ ! -e "$dir/gpu-bench.json" ]
}

refused() {
	"$top/scripts/gpu-bench.sh" --emulated --record
	[ $? = 2 ] || return 1
	LD_LIBRARY_PATH=$O/tests/emu "$O/tests/gpu/gpu_bench" --emulated --what
	[ $? = 2 ]
}

# A kernel that fails is a failure of the whole, and says which call it was.
fails() {
	! CQ_EMU_FAIL=cuGraphInstantiateWithFlags:1 bench --emulated 2>"$dir/why" &&
		grep cuGraphInstantiateWithFlags "$dir/why" || return 1
	# before it is known what device there is, too
	! CQ_EMU_FAIL=cuMemAlloc:1 bench --emulated 2>"$dir/why" && grep cuMemAlloc "$dir/why" &&
		[ "$(grep -c '"emulated":true.*"why":"not reached"}$' "$json")" = 36 ]
}

# Once is enough for a sanitizer.
plan "$([ -n "${SANITIZE:-}" ] && echo 10 || echo 13)"
ok "a call that fails is told" fails
ok "all of it, emulated" bench --emulated
ok "each line is whole" lines_are_whole
ok "there are all kinds, with their fields" kinds
ok "results are right" results_are_right
ok "so are quantiles and ratios" sums_are_right
ok "times are compared with the model" model_is_applied
ok "a table and a plot" table_and_plot
if [ -z "${SANITIZE:-}" ]; then
	ok "others' kernels count" others_count
	ok "it ends in time, and names what is missing" in_time
	ok "what hangs is ended" ended
fi
ok "the emulation is no GPU" no_gpu
ok "unknown words are refused" refused
