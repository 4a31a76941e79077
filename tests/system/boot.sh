#!/bin/bash
# SPDX-License-Identifier: MIT
# TIMEOUT=240
#
# cqd as a service of a real systemd, booted in a container over the machine's
# own files. What happens there is in boot, one file for each scenario, in the
# order of their names.
#
#	boot.sh [WORD]...		boot, and print the TAP of the inside
#	boot.sh --inside [WORD]...	the part that runs there, as a unit
#
# With words: only the first scenario, and those whose names contain one; own-*.sh
# are run only so, in a boot of their own. With CQ_OPERATIONS=FILE, what
# Documentation/operations.md shows goes there with this time's output.
#
# Needs root and systemd-container. Everything is written to a tmpfs that only
# this script's mount namespace sees.
set -u

wanted() {	# FILE WORD...
	local file=${1##*/} word
	shift
	[[ $# -gt 0 || $file != own-* ]] || return 1
	[[ $# -gt 0 && $file != 1* ]] || return 0
	for word; do
		[[ $file != *$word* ]] || return 0
	done
	return 1
}

inside() {
	local file
	# shellcheck source=tests/system/lib-boot.sh
	. /cq/lib-boot.sh
	for file in /cq/boot/*.sh; do
		wanted "$file" "$@" || continue
		scenario=$(basename "$file" .sh)
		scenario=${scenario#*-}
		# shellcheck source=/dev/null
		. "$file"
	done
	# shellcheck disable=SC2154	# lib-boot.sh counts
	if [ "$bad" -ne 0 ]; then
		journalctl --no-pager -u cqd.service -o cat | tail -n 40 | sed 's/^/# /'
	fi
	echo "1..$n"
	exit "$bad"
}

if [ "${1:-}" = --inside ]; then
	shift
	inside "$@"
fi

# --- outside ---

skip() {
	echo "1..0 # SKIP $*"
	exit 0
}
top=${TOP:-$(cd "$(dirname "$0")/../.." && pwd)}
O=${O:-$top/build}
[ "$(id -u)" = 0 ] || skip "not root: cannot boot a systemd"
command -v systemd-nspawn >/dev/null || skip "no systemd-nspawn: install systemd-container"
[ -x /lib/systemd/systemd ] || skip "no systemd to boot: install systemd"
[ -z "${SANITIZE:-}" ] || skip "the unit's sandbox has no room for sanitizers"
if [ -z "${CQ_BOOT_NS:-}" ]; then
	unshare -m --propagation private true 2>/dev/null || skip "no mount namespaces here"
	W=$(mktemp -d "${TMPDIR:-/tmp}/cq-boot.XXXXXX") || exit 1
	CQ_BOOT_NS=$W unshare -m --propagation private "$0" "$@"
	rc=$?
	rmdir "$W"
	exit $rc
fi

# The container's own view: a writable layer over the machine's files.
W=$CQ_BOOT_NS
mount -t tmpfs -o size=512m,mode=755 tmpfs "$W" || skip "cannot mount a tmpfs"
mkdir "$W"/{up,wk,root,out,o,in}
mount -t overlay overlay -o "lowerdir=/,upperdir=$W/up,workdir=$W/wk" "$W/root" 2>/dev/null ||
	skip "cannot mount an overlay"
R=$W/root
rm -rf "$R"/etc/systemd/system/*.wants "$R/etc/systemd/system/default.target"
: >"$R/etc/fstab"

# Installed as a package would, from what is built already.
cp -a "$O"/cqd "$O"/cqctl "$O"/cq-holder "$O"/libcq* "$W/o/"
if ! make -s -C "$top" -o all O="$W/o" PREFIX=/usr DESTDIR="$R" install >"$W/install" 2>&1; then
	echo "1..1"
	echo "not ok 1 - make install"
	sed 's/^/# /' "$W/install"
	exit 1
fi
cp -r "$top/tests/system/boot.sh" "$top/tests/system/lib-boot.sh" "$top/tests/system/boot" \
	"$top/systemd/cqd.conf" "$top/tests/system/metrics.py" "$top/daemon/msgid.h" \
	"$top/Documentation/operations.md" "$W/in/"
cp "$O/tests/system/test_restart" "$W/in/worker"

cat >"$R/etc/systemd/system/cqtest.service" <<UNIT
[Unit]
SuccessAction=exit-force
FailureAction=exit-force
After=basic.target
[Service]
Type=oneshot
ExecStart=/cq/boot.sh --inside $*
StandardOutput=file:/cq-out/stdout
StandardError=file:/cq-out/stderr
TimeoutStartSec=120
UNIT
printf '[Unit]\nRequires=basic.target cqtest.service\nAfter=basic.target\n' \
	>"$R/etc/systemd/system/cqtest.target"

# systemd wants a control group of its own, and nspawn a runtime folder.
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=755 tmpfs /run/systemd/nspawn
cg=/sys/fs/cgroup/unified
[ -d $cg ] || cg=/sys/fs/cgroup
mkdir "$cg/cq-boot-$$" 2>/dev/null || skip "cannot make a control group"
trap 'find "$cg/cq-boot-$$" -depth -type d -exec rmdir {} + 2>/dev/null' EXIT
(
	echo $BASHPID >"$cg/cq-boot-$$/cgroup.procs" || exit 97
	export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
	exec timeout 150 systemd-nspawn -q -D "$R" --boot --register=no --keep-unit \
		--private-network --machine="cqboot$$" --link-journal=no --console=pipe \
		--kill-signal=SIGRTMIN+3 --bind="$W/out":/cq-out --bind-ro="$W/in":/cq \
		systemd.unit=cqtest.target systemd.show_status=no
) </dev/null >"$W/console" 2>&1
rc=$?
if [ ! -s "$W/out/stdout" ]; then
	# it never came to the first check: this machine does not let a systemd boot
	[ "$rc" -ne 97 ] || skip "cannot enter a control group"
	skip "systemd does not boot here: $(tail -n 1 "$W/console" | tr -d '\r')"
fi
cat "$W/out/stdout"
sed 's/^/# /' "$W/out/stderr" >&2
[ -z "${CQ_OPERATIONS:-}" ] || cp "$W/out/operations.md" "$CQ_OPERATIONS"
grep -q '^1\.\.' "$W/out/stdout" || {
	echo "# the booted system ended early (status $rc)"
	tail -n 20 "$W/console" | sed 's/^/# /'
	exit 1
}
exit "$rc"
