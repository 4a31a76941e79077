# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154
# Stop and start: what the service manager keeps of it, and that cqd says so.

since=$(cursor)
was=$(sealed)
# A helper that failed is started again, but not cqd by it.
stays_stopped() { systemctl start cq-verify@g0.service; is "$(prop ActiveState)" inactive; }
check "stop" systemctl stop cqd.service
check "a helper leaves it so" stays_stopped
check "start" systemctl start cqd.service
if [ "$(systemctl --version | awk 'NR == 1 { print $2 }')" -lt 254 ]; then
	check "the store is empty" pages 0
	check "which is said" journal_has "the cache starts empty" "$since"
else
	check "the store was kept" pages "$was"
fi
check "stop everything" systemctl stop cqd.service cqd.socket cqd-admin.socket \
	'cqd-tenant@*.socket'
check "nothing failed" is "$(systemctl --failed --no-legend --plain)" ""
