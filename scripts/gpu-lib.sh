# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2034 # read by who sources this
#
# What gpu-check.sh and gpu-bench.sh begin with; to be sourced with their arguments.
# Sets top, O, emulated, record, run (words before a program of ours), began, and args:
# the commit, and what the fake driver needs.
set -u
export LC_ALL=C
top=$(cd "$(dirname "$0")/.." && pwd)
O=${O:-$top/build}
emulated='' record=''
read -ra run <<<"${CQ_RUN:-}"
began=$SECONDS

case "$*" in
'') ;;
--emulated) emulated=1 ;;
--record) record=1 ;;
*)
	echo "usage: ${0##*/} [--emulated | --record]" >&2
	exit 2
	;;
esac

commit=${CQ_COMMIT:-}
if [ -z "$commit" ]; then
	commit=$(git -C "$top" -c safe.directory='*' rev-parse --short=12 HEAD 2>/dev/null)
	[ -z "$commit" ] || git -C "$top" -c safe.directory='*' diff --quiet HEAD 2>/dev/null ||
		commit=$commit+
fi
args=(--commit "$commit")
if [ -n "$emulated" ]; then
	# One state for all processes of this run, and for no others.
	export LD_LIBRARY_PATH=$O/tests/emu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
	export CQ_EMU_STATE=run$$
	args+=(--emulated)
fi
