#!/bin/bash
# SPDX-License-Identifier: MIT
# TIMEOUT=1500
# shellcheck disable=SC2317,SC2086,SC2046,SC2048,SC2016
#
# Static checks, as TAP: one line each, findings on stderr. A check whose tool
# is missing is skipped. "check-static.sh NAME..." runs the ones named.
set -u
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 2
export O=${O:-$top/build}
mkdir -p "$O"
kbuild=${KBUILD:-$(printf '%s\n' /usr/lib/linux-kbuild-*/scripts | tail -n 1)}
jobs=$(nproc)

checks='werror-gcc werror-clang headers abi isa arrows size banned spdx
	kernel-doc checkpatch cppcheck clang-tidy sparse codespell shellcheck
	man docs alone cuda-abi gpu-model'

files() {	# patterns
	scripts/files.sh "$@"
}

sources() {
	files 'include/*.h' 'proto/*.[ch]' 'kernels/*.[ch]' 'daemon/*.[ch]' 'client/*.[ch]'
}

need() {	# tool
	command -v "$1" >/dev/null && return 0
	why="$1 is not installed"
	return 1
}

flags() {
	make -s O="$O" print-cppflags
}

# CI builds with WERROR=1 from the start: once is enough.
check_werror_gcc() {
	local folder=$O

	need gcc || return 77
	[ -n "${WERROR:-}" ] || folder=$O/werror-gcc
	make -s -j "$jobs" O="$folder" CC=gcc WERROR=1 all tests benches
}
# Later passes warn of large frames, which tests may have: no code is made for those.
check_werror_clang() {
	local clang='CC=clang WERROR=1 CONFIG_CUDA='

	need clang || return 77
	make -s -j "$jobs" O="$O/werror-clang" $clang objects &&
		make -s -j "$jobs" O="$O/syntax-clang" $clang CFLAGS='-O2 -g -fsyntax-only' \
			test-objects
}

check_headers() { make -s -j "$jobs" O="$O" check-headers; }

check_abi() { make -s -j "$jobs" O="$O" check-abi; }

check_isa() { make -s -j "$jobs" O="$O" check-isa; }

check_arrows() { scripts/check-arrows.sh; }

check_size() {
	local bad=0

	awk -f scripts/check-size.awk $(files '*.[ch]' '*.[ch]pp' '*.cu' '*.cuh') >&2 || bad=1
	files '*.[ch]' '*.[ch]pp' '*.cu' '*.cuh' '*.sh' '*.awk' '*/Build' Makefile 'scripts/*' |
		xargs wc -L |
		awk '$1 > 100 && $2 != "total" { print $2 ": " $1 " columns"; bad = 1 }
		     END { exit bad }' >&2 || bad=1
	return $bad
}

check_banned() {
	local all='strcpy|strcat|sprintf|vsprintf|strncpy|gets|strtok|atoi|atol|atoll|atof'

	all="$all|alloca|tmpnam|tempnam|mktemp|asctime|ctime|gmtime|localtime|rand|srand"
	{ sources; files 'tests/*.[ch]' '*.[ch]pp' '*.cu' '*.cuh'; } |
		xargs -r grep -nE "(^|[^a-zA-Z0-9_>.\"])($all) ?\(" |
		grep -vE ':[0-9]+:[[:space:]]*(\*|/\*|//)' >&2 && return 1
	sources | xargs -r grep -nE '(^|[^a-zA-Z0-9_>.])(system|popen|perror) ?\(' >&2 && return 1
	return 0
}

check_spdx() {
	local f bad=0

	for f in $(files '*.[ch]' '*.[ch]pp' '*.cu' '*.cuh' '*.sh' '*.py' '*.proto' \
		'*.awk' '*.bats' Makefile 'scripts/Makefile.*' 'systemd/*' '*.[1-8]' '.ci/run'); do
		head -n 3 "$f" | grep -q 'SPDX-License-Identifier: MIT' && continue
		echo "$f: no SPDX line" >&2
		bad=1
	done
	return $bad
}

check_kernel_doc() { KERNEL_DOC=$kbuild/kernel-doc scripts/check-kdoc.sh; }

check_checkpatch() {
	local cp=${CHECKPATCH:-$O/checkpatch/scripts/checkpatch.pl} tree tar

	tar=$(printf '%s\n' /usr/src/linux-source-*.tar.xz | tail -n 1)
	if [ ! -e "$cp" ] && [ -e "$tar" ]; then
		mkdir -p "$O/checkpatch"
		tree=$(basename "$tar" .tar.xz)
		tar -C "$O/checkpatch" --strip-components=1 -xf "$tar" \
			"$tree/scripts/checkpatch.pl" "$tree/scripts/spelling.txt" \
			"$tree/scripts/const_structs.checkpatch"
	fi
	if [ ! -e "$cp" ]; then
		why='no checkpatch.pl: install linux-source-6.1 or set CHECKPATCH='
		return 77
	fi
	files '*.[ch]' | xargs -n 8 -P "$jobs" perl "$cp" --no-tree --terse --no-summary -f \
		--max-line-length=100 --ignore "$(grep -v '^#' scripts/checkpatch.ignore |
		paste -sd,)" >&2
}

check_cppcheck() {
	need cppcheck || return 77
	sources | grep '\.c$' | xargs -r cppcheck --quiet --library=posix --std=c11 \
		--enable=warning,portability,performance --inline-suppr -j "$jobs" \
		--error-exitcode=1 --suppressions-list=scripts/cppcheck.supp \
		-D__x86_64__ -DPROTOBUF_C_VERSION_NUMBER=1004001 -DPROTOBUF_C__BEGIN_DECLS= \
		-DPROTOBUF_C__END_DECLS= -D_GNU_SOURCE -Iinclude -I. -I"$O/proto" >&2
}

check_clang_tidy() {
	need clang-tidy || return 77
	make -s O="$O" "$O/proto/cq.pb-c.h" || return 1
	sources | grep '\.c$' | grep -v '^kernels/\(x86\|arm\)/' |
		xargs -r -n 4 -P "$jobs" sh -c 'for f; do
			clang-tidy --quiet --warnings-as-errors="*" "$f" -- '"$(flags)"' \
				2>/dev/null || exit 1
		done' sh >&2
}

check_sparse() {
	need sparse || return 77
	make -s O="$O" check-sparse >&2
}

check_codespell() {
	need codespell || return 77
	files '*.[ch]' '*.[ch]pp' '*.cu' '*.cuh' '*.md' '*.sh' '*.[1-8]' '*.proto' 'systemd/*' |
		grep -v '^client/worker/lm/' |
		xargs codespell --ignore-words=scripts/codespell.ignore >&2
}

check_shellcheck() {
	need shellcheck || return 77
	{ files '*.sh'; files .ci/run; } | xargs -r shellcheck -e SC2016,SC2317 >&2
}

check_man() {
	local f bad=0

	need mandoc || return 77
	for f in $(files '*.[1-8]'); do
		mandoc -T lint -W warning "$f" >&2 || bad=1
	done
	return $bad
}

# Our declarations of the CUDA driver against NVIDIA's, where those are. And
# driver.c is the one place that knows a driver or a header of CUDA.
check_cuda_abi() {
	local cuda=${CUDA_HOME:-/usr/local/cuda}/include

	# The worker stands for an engine, which has a driver of its own.
	sources | grep -vE '^(kernels/cuda/driver|client/worker/device)\.c$' |
		xargs -r grep -nE '"libcuda|include <cuda' >&2 && return 1
	[ -e "$cuda/cudaTypedefs.h" ] || cuda=/usr/include
	if [ ! -e "$cuda/cudaTypedefs.h" ]; then
		why='no cuda.h: install the CUDA toolkit or set CUDA_HOME='
		return 77
	fi
	need g++ || return 77
	g++ -std=c++17 -I. -I"$cuda" -Wall -Wextra -Werror -fsyntax-only \
		tests/emu/abi_check.cpp >&2
}

# What gpu_bench compares times with is what the model says.
check_gpu_model() {
	need python3 || return 77
	scripts/gpu-model.py --check >&2
}

# The repository speaks of the project alone: no path of somebody's machine.
check_docs() { scripts/check-docs.sh >&2; }

check_alone() {
	local words='(^|[^A-Za-z0-9_}])/wor[k]/|\.\./share[d]|/tmp/[b]uild-|/home/[a-z]'

	files '*' | grep -vE '^client/worker/lm/.*(u16|safetensors|json)$' |
		xargs -r grep -nIE "$words" >&2 && return 1
	return 0
}

set -- ${*:-$checks}
echo "TAP version 13"
echo "1..$#"
n=0 failed=0
for check; do
	n=$((n + 1))
	why=
	began=$SECONDS
	"check_${check//-/_}" >"$O/static.out" 2>&1
	rc=$?
	case $rc in
	0) echo "ok $n - $check" ;;
	77) echo "ok $n - $check # SKIP $why" ;;
	*) echo "not ok $n - $check"; sed 's/^/# /' "$O/static.out" | head -n 60; failed=1 ;;
	esac
	[ $((SECONDS - began)) -lt 5 ] || echo "# $((SECONDS - began)) s"
done
exit $failed
