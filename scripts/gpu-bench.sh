#!/bin/bash
# SPDX-License-Identifier: MIT
#
#	gpu-bench.sh [--emulated | --record]
#
# Figures of a GPU (Documentation/gpu.md): lines of JSON in O/gpu-bench.json, a table of
# them, and a plot in O/gpu-bench.svg. Without a GPU that is said, and nothing was
# measured. --record also puts the lines into Documentation/gpu-bench.json. --emulated runs
# it on the fake driver, at a toy's size, into O/gpu-bench-emulated.json: that says that
# the program works, and nothing about GPUs.
#
# In the environment: GPU_SECONDS (480) for everything; GPU_MIB, memory to use instead of
# what is free; GPU_SHAPE, only one; GPU_PYTHON, a Python with PyTorch or FlashInfer;
# CQ_RUN, words before each program of ours, and CQ_COMMIT, both of a bundle.
# shellcheck source=scripts/gpu-lib.sh
. "$(dirname "$0")/gpu-lib.sh"
budget=${GPU_SECONDS:-480}
args+=(${GPU_MIB:+--size "$GPU_MIB"} ${GPU_SHAPE:+--only "$GPU_SHAPE"})
out=$O/gpu-bench.json
if [ -n "$emulated" ]; then
	out=$O/gpu-bench-emulated.json
else
	# What others' kernels take here, where they are installed.
	python=${GPU_PYTHON:-$(command -v python3)}
	others=$O/gpu-bench.others
	: >"$others"
	if [ -n "$python" ]; then
		# Lines that came before it failed, or its time was over, are good.
		timeout 100 "$python" "$top/scripts/gpu-baselines.py" >"$others" 2>"$others.log"
	fi
	if [ -s "$others" ]; then
		args+=(--baselines "$others")
	else
		echo "gpu-bench: no other program's kernel: ours alone are compared with"
	fi
fi

left=$((budget - SECONDS + began))
if [ "$left" -le 0 ]; then
	echo "gpu-bench: the $budget s of GPU_SECONDS are over: nothing was measured" >&2
	exit 1
fi
timeout -k 5 $((left + 40)) "${run[@]}" "$O/tests/gpu/gpu_bench" --seconds "$left" "${args[@]}" \
	>"$out.tmp" </dev/null
rc=$?
if [ $rc = 3 ]; then
	rm -f "$out.tmp"
	echo "gpu-bench: no GPU: nothing was measured"
	exit 0
fi
mv "$out.tmp" "$out"
awk -f "$top/scripts/gpu-bench.awk" "$out"
awk -v plot=1 -f "$top/scripts/gpu-bench.awk" "$out" >"${out%.json}.svg"
lines=$(wc -l <"$out")
note=${emulated:+; emulated: no GPU was measured}
echo "gpu-bench: $lines lines in $out, $((SECONDS - began)) s$note"
if [ $rc != 0 ] || [ "$lines" = 0 ]; then
	echo "gpu-bench: gpu_bench ended with status $rc"
	exit 1
fi
if [ -n "$record" ]; then
	if grep -q '"emulated":true' "$out"; then
		echo "gpu-bench: only the emulation was measured: nothing is recorded" >&2
		exit 1
	fi
	cp "$out" "$top/Documentation/gpu-bench.json"
fi
