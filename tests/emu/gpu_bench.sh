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

# Three codings, two kinds of keys, two of sharing, two variants; step: fp16, too.
kinds() {
	of append 3 config rows ring_layers us ns_token &&
		of prefill 3 config rows ring_layers us ns_token &&
		of step 12 config gib context batch sequences_held us tokens_s &&
		of decode 24 config keys sharing variant batch rows context ring_layers us p10_us \
			p90_us baseline baseline_us baseline_hbm_share versus vs_fp16 hbm_share \
			rel_err
}

# What the kernels computed was right, and both sides of each ratio were measured.
results_are_right() {
	awk -F'[:,]' '/"bench":"decode"/ {
		n++
		for (i = 1; i < NF; i++)
			if ($i == "\"rel_err\"" && !($(i + 1) + 0 > 0 && $(i + 1) + 0 < 2e-3))
				bad = 1
			else if ($i ~ /^"(us|baseline_us|vs_fp16)"$/ && !($(i + 1) + 0 > 0))
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
		ratio = num("baseline_us") / num("us")
		if (num("p10_us") > num("us") || num("us") > num("p90_us"))
			exit bad = 1
		if (ratio / num("vs_fp16") < 0.999 || ratio / num("vs_fp16") > 1.001)
			exit bad = 1
	}
	END { exit bad || !n }' "$json"
}

# An fp16 kernel of others counts if it is faster than ours.
others_count() {
	echo "magic toy 2 256 0.5" >"$dir/others"
	LD_LIBRARY_PATH=$O/tests/emu "$O/tests/gpu/gpu_bench" --emulated --size 24 \
		--baselines "$dir/others" >"$dir/json" || return 1
	grep '"sharing":"private"' "$dir/json" | grep -c '"baseline":"magic","baseline_us":0.5,' |
		grep -x 12 &&
		! grep '"sharing":"prefix"' "$dir/json" | grep magic
}

table_and_plot() {
	grep '^toy .* few ' "$dir/said" && grep 'emulated: no GPU was measured' "$dir/said" &&
		[ "$(grep -c '<rect' "${json%.json}.svg")" = 24 ] &&
		tail -n 1 "${json%.json}.svg" | grep -x '</svg>'
}

in_time() {
	LD_LIBRARY_PATH=$O/tests/emu timeout 20 "$O/tests/gpu/gpu_bench" --emulated --size 24 \
		--seconds 1 >"$dir/json"
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
		grep cuGraphInstantiateWithFlags "$dir/why"
}

echo "TAP version 13"
case ${SANITIZE:-} in
*thread*)	# which knows no fibers
	echo "1..1"
	echo "ok 1 - nothing of it under TSan"
	exit
	;;
esac
echo "1..11"
ok "a call that fails is told" fails
ok "all of it, emulated" bench --emulated
ok "each line is whole" lines_are_whole
ok "there are all kinds, with their fields" kinds
ok "results are right" results_are_right
ok "so are quantiles and ratios" sums_are_right
ok "a table and a plot" table_and_plot
ok "others' kernels count" others_count
ok "it ends in time" in_time
ok "the emulation is no GPU" no_gpu
ok "unknown words are refused" refused
