# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2034,SC2154,SC2317
#
# For the scenarios in tests/system/boot, which boot.sh runs inside a booted
# systemd, one after the other, in one shell. Each is read by ".": it calls
# check() for whatever must hold, and leaves cqd running with "tiny" loaded and
# the namespaces of base_conf.

sock=/run/cq/cqd.sock
conf=/etc/cq/cqd.conf
n=0 bad=0

check() {	# check NAME COMMAND...
	local name=$1 out
	shift
	n=$((n + 1))
	if out=$("$@" 2>&1); then
		echo "ok $n - $scenario: $name"
	else
		bad=1
		echo "not ok $n - $scenario: $name"
		printf '%s\n' "$out" | sed 's/^/# /' | tail -n 20
	fi
}
# until_ok COMMAND...: it succeeds within 10 s
until_ok() {
	local i
	for ((i = 0; i < 200; i++)); do
		"$@" && return 0
		sleep 0.05
	done
	return 1
}
is() { [ "$1" = "$2" ] || { echo "is \"$1\", want \"$2\""; return 1; }; }
at_least() { [ "$1" -ge "$2" ] || { echo "is $1, want $2 or more"; return 1; }; }
# says TEXT COMMAND...: it fails, and TEXT is in what it says
says() {
	local text=$1 out
	shift
	if out=$("$@" 2>&1); then
		echo "it went through: $out"
		return 1
	fi
	[[ $out == *"$text"* ]] || { echo "says \"$out\", want \"$text\""; return 1; }
}
# journal_has TEXT [SINCE]: since that cursor, or this boot
journal_has() {
	journalctl --sync
	journalctl --no-pager -o cat -u cqd.service ${2:+--after-cursor="$2"} |
		grep -qF -e "$1" || { echo "not in the journal: $1"; return 1; }
}
cursor() {
	journalctl --sync
	journalctl --no-pager -n 0 --show-cursor | sed -n 's/^-- cursor: //p'
}

# --- the service ---

prop() { systemctl show cqd.service -p "$1" --value; }
mode() { stat -c '%a %U' "$1"; }
json() { tr -d ' \n' | grep -o "\"$1\":[^,}]*" | head -n "${2:-1}" | cut -d: -f2 | tr -d '"'; }
sealed() { cqctl status --json | json pages_sealed; }
pages() { is "$(sealed)" "$1"; }
new_pid() { [ "$(prop MainPID)" != "$1" ] && [ "$(prop ActiveState)" = active ] && cqctl ping; }
killed() {	# by this signal, and there again
	local old
	old=$(prop MainPID)
	systemctl kill -s "$1" cqd.service && until_ok new_pid "$old"
}
# The file as installed, with these lines behind it.
configure() { cat /cq/cqd.conf - >$conf; }

# --- workers ---

# worker COMMAND [SOCKET]: see the end of test_restart.c
worker() { CQ_WORKER=$1 CQ_WORKER_ARG=${2:-$sock} /cq/worker; }
attach() { worker attach; }

# A worker as in a container of tenant NAME: pid and mount namespaces of its own,
# uid 0 without a capability, and of /run/cq only that tenant's folder.
in_container() {	# NAME COMMAND...
	local dir=/run/cq/tenants/$1
	shift
	# shellcheck disable=SC2016
	unshare --mount --pid --fork --mount-proc --kill-child sh -c '
		mount --bind "$1" /run/cq && shift &&
		exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
	' sh "$dir" "$@"
}
container_worker() { in_container "$1" env CQ_WORKER="$2" CQ_WORKER_ARG=$sock \
	CQ_WORKER_TENANT="${3:-}" /cq/worker; }
