# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154
# Installed, activated by its socket, killed, restarted, hung: the pages stay.

check "sysusers and tmpfiles" sh -c 'systemd-sysusers && systemd-tmpfiles --create'
systemctl daemon-reload
check "units verify" systemd-analyze verify cqd.service cqd.socket cqd-admin.socket \
	cqd-tenant@a.socket cq-holder@g0.service cq-verify@g0.service
check "enable the socket" systemctl enable --now cqd.socket cqd-admin.socket
check "nothing runs before somebody asks" is "$(prop ActiveState)" inactive
check "admin socket is root's alone" is "$(mode /run/cq/admin.sock)" "600 root"
check "ping activates the service" cqctl ping
check "active" is "$(prop ActiveState)" active
check "under its own uid" is "$(stat -c %U "/proc/$(prop MainPID)")" cq
check "exposure at most 1.5 by systemd-analyze security" \
	systemd-analyze security --threshold=15 --no-pager cqd.service
echo "# $(systemd-analyze security --no-pager cqd.service | tail -n 1)"
check "room for all descriptors of the store" at_least "$(prop FileDescriptorStoreMax)" \
	$((4096 + 256 + 256 + 1))
check "open files for 4096 connections" at_least "$(prop LimitNOFILE)" $((4096 * 74 + 10240))
check "an empty cache is said" journal_has "the cache starts empty"
worker model /run/tiny.cqm
check "load a model" cqctl load tiny /run/tiny.cqm
check "a worker publishes" worker publish
check "20 pages" pages 20
check "status text" grep -q . <(prop StatusText)
check "descriptors are in the store" at_least "$(prop NFileDescriptorStore)" 4

check "restarted after kill -9" killed KILL
check "pages are still there" pages 20
check "and found by a worker" attach
check "systemctl restart" systemctl restart cqd.service
check "pages are still there" pages 20
check "how many is said" journal_has "pages kept: 20"
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
rm -r /run/systemd/system/cqd.service.d
systemctl daemon-reload
check "pages are still there" pages 20
check "and found by a worker" attach
check "daemon-reexec keeps the store" \
	sh -c 'systemctl daemon-reexec && systemctl restart cqd.service'
check "pages are still there" pages 20
