#!/bin/sh
# SPDX-License-Identifier: MIT
#
#	run check [--emulated]	all that is asked of a GPU: README.md
#	run bench [--emulated]	figures of a GPU
#	run PROGRAM [ARG...]	a program of the bundle, such as cqctl
#
# The machine's loader and C library are used if they know our programs, else the
# bundle's (CQ_BUNDLE_LOADER=1: always).
set -u
here=$(cd "$(dirname "$0")" && pwd)
path=$here:$here/lib
case " $* " in
*' --emulated '*) path=$here/tests/emu:$path ;;
esac
path=$path${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

if [ -z "${CQ_BUNDLE_LOADER:-}" ] &&
   LD_LIBRARY_PATH=$path "$here/tests/gpu/gpu_hardened" --list >/dev/null 2>&1; then
	export LD_LIBRARY_PATH="$path"
	CQ_RUN=
else
	CQ_RUN="$here/glibc/ld-linux-x86-64.so.2 --library-path $here/glibc:$path"
fi
export CQ_RUN

case ${1:-} in
check)
	shift
	CQ_COMMIT=$(cat "$here/commit")
	export CQ_COMMIT
	O=$here exec "$here/scripts/gpu-check.sh" "$@"
	;;
bench)
	shift
	CQ_COMMIT=$(cat "$here/commit")
	export CQ_COMMIT
	O=$here exec "$here/scripts/gpu-bench.sh" "$@"
	;;
'' | -*)
	sed -n 's/^#	//p' "$0" >&2
	exit 2
	;;
*)
	prog=$1
	shift
	[ -x "$here/$prog" ] || { echo "run: the bundle has no $prog" >&2; exit 2; }
	exec $CQ_RUN "$here/$prog" "$@"
	;;
esac
