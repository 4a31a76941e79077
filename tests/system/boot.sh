#!/bin/bash
# SPDX-License-Identifier: MIT
# TIMEOUT=180
#
# cqd as a service of a real systemd, booted in a container over the machine's
# own files: installed, activated by its socket, killed, restarted, hung, and
# its pages still there.
#
#	boot.sh			boot, and print the TAP of the inside
#	boot.sh --inside	the part that runs there, as a unit
#
# Needs root and systemd-container. Everything is written to a tmpfs that only
# this script's mount namespace sees.
# shellcheck disable=SC2317	# commands that check() is given
set -u

# --- inside ---

n=0 bad=0
check() {	# check NAME COMMAND...
	local name=$1 out
	shift
	n=$((n + 1))
	if out=$("$@" 2>&1); then
		echo "ok $n - $name"
	else
		bad=1
		echo "not ok $n - $name"
		printf '%s\n' "$out" | sed 's/^/# /' | tail -n 20
	fi
}
# until COMMAND...: it succeeds within 10 s
until_ok() {
	local i
	for ((i = 0; i < 200; i++)); do
		"$@" && return 0
		sleep 0.05
	done
	return 1
}
prop() { systemctl show cqd.service -p "$1" --value; }
worker() { CQ_WORKER=$1 CQ_WORKER_ARG=$2 /cq/worker; }
sealed() { cqctl status --json | tr -d ' ' | grep -o '"pages_sealed":[0-9]*' | tr -dc '0-9'; }
pages() { is "$(sealed)" "$1"; }
is() { [ "$1" = "$2" ] || { echo "is \"$1\", want \"$2\""; return 1; }; }
at_least() { [ "$1" -ge "$2" ] || { echo "is $1, want $2 or more"; return 1; }; }
new_pid() { [ "$(prop MainPID)" != "$1" ] && [ "$(prop ActiveState)" = active ] && cqctl ping; }
killed() {
	local old
	old=$(prop MainPID)
	systemctl kill -s "$1" cqd.service && until_ok new_pid "$old"
}
owner() { stat -c %U "/proc/$(prop MainPID)"; }
mode() { stat -c '%a %U' "$1"; }
attach() { worker attach /run/cq/cqd.sock; }

inside() {
	sock=/run/cq/cqd.sock
	check "sysusers and tmpfiles" sh -c 'systemd-sysusers && systemd-tmpfiles --create'
	systemctl daemon-reload
	check "units verify" systemd-analyze verify cqd.service cqd.socket cqd-admin.socket
	check "enable the socket" systemctl enable --now cqd.socket cqd-admin.socket
	check "nothing runs before somebody asks" is "$(prop ActiveState)" inactive
	check "admin socket is root's alone" is "$(mode /run/cq/admin.sock)" "600 root"
	check "ping activates the service" cqctl ping
	check "active" is "$(prop ActiveState)" active
	check "under its own uid" is "$(owner)" cq
	check "exposure by systemd-analyze security" \
		systemd-analyze security --threshold=20 --no-pager cqd.service
	worker model /run/tiny.cqm
	check "load a model" cqctl load tiny /run/tiny.cqm
	check "a worker publishes" worker publish $sock
	check "20 pages" pages 20
	check "status text" grep -q . <(prop StatusText)
	check "descriptors are in the store" at_least "$(prop NFileDescriptorStore)" 4

	check "restarted after kill -9" killed KILL
	check "pages are still there" pages 20
	check "and found by a worker" attach
	check "systemctl restart" systemctl restart cqd.service
	check "pages are still there" pages 20
	check "and found by a worker" attach
	check "reload" systemctl reload cqd.service
	check "checksums hold" cqctl verify

	# a daemon that stands still is replaced by the watchdog
	mkdir -p /run/systemd/system/cqd.service.d
	printf '[Service]\nWatchdogSec=1\n' >/run/systemd/system/cqd.service.d/w.conf
	systemctl daemon-reload
	systemctl restart cqd.service
	old=$(prop MainPID)
	kill -STOP "$old"
	check "watchdog replaces a hung daemon" until_ok new_pid "$old"
	check "pages are still there" pages 20
	check "and found by a worker" attach
	check "daemon-reexec keeps the store" \
		sh -c 'systemctl daemon-reexec && systemctl restart cqd.service'
	check "pages are still there" pages 20
	check "stop" systemctl stop cqd.service cqd.socket cqd-admin.socket
	check "nothing failed" is "$(systemctl --failed --no-legend --plain)" ""
	if [ $bad -ne 0 ]; then
		journalctl --no-pager -u cqd.service -o cat | tail -n 40 | sed 's/^/# /'
	fi
	echo "1..$n"
	exit $bad
}

[ "${1:-}" != --inside ] || inside

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
cp -a "$O"/cqd "$O"/cqctl "$O"/libcq* "$W/o/"
if ! make -s -C "$top" -o all O="$W/o" PREFIX=/usr DESTDIR="$R" install >"$W/install" 2>&1; then
	echo "1..1"
	echo "not ok 1 - make install"
	sed 's/^/# /' "$W/install"
	exit 1
fi
cp "$top/tests/system/boot.sh" "$W/in/boot.sh"
cp "$O/tests/system/test_restart" "$W/in/worker"

cat >"$R/etc/systemd/system/cqtest.service" <<'UNIT'
[Unit]
SuccessAction=exit-force
FailureAction=exit-force
After=basic.target
[Service]
Type=oneshot
ExecStart=/cq/boot.sh --inside
StandardOutput=file:/cq-out/stdout
StandardError=file:/cq-out/stderr
TimeoutStartSec=60
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
	exec timeout 100 systemd-nspawn -q -D "$R" --boot --register=no --keep-unit \
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
grep -q '^1\.\.' "$W/out/stdout" || {
	echo "# the booted system ended early (status $rc)"
	tail -n 20 "$W/console" | sed 's/^/# /'
	exit 1
}
exit "$rc"
