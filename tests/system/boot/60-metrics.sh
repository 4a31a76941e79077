# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154
# Metrics over sockets of the service manager, and entries of the journal. systemd
# hands sockets over when a service starts: cqd is stopped for it.

healthy() { python3 /cq/metrics.py get "$1" /health | grep -qx 200; }
msgid() { sed -n "s/.*CQD_MSG_$1.*\"\\(.*\\)\"/\\1/p" /cq/msgid.h; }
# entry ID FIELD: an entry of that message id has that field
entry() { journalctl -o json -u cqd.service "MESSAGE_ID=$(msgid "$1")" | grep -q "\"$2\""; }

systemctl stop cqd.service
mkdir -p /run/systemd/system/cqd-metrics.socket.d
printf '[Socket]\nListenStream=127.0.0.1:9464\n' \
	>/run/systemd/system/cqd-metrics.socket.d/port.conf
systemctl daemon-reload
check "the unit verifies" systemd-analyze verify cqd-metrics.socket
check "a socket, and a port as well" systemctl enable --now cqd-metrics.socket
check "cqd starts with them" cqctl ping
check "healthy, over the socket" healthy /run/cq/metrics.sock
check "and over the port, which the service itself could not open" healthy 9464
check "the socket is of the group's" is "$(mode /run/cq/metrics.sock)" "660 root"
check "an entry of the journal" until_ok entry SERVING SYSLOG_IDENTIFIER
check "explained by the catalog" sh -c \
	"journalctl --update-catalog && journalctl --list-catalog $(msgid SERVING)"
check "restarted after kill -9" killed KILL
check "healthy again" healthy 9464
systemctl disable --now cqd-metrics.socket
rm -r /run/systemd/system/cqd-metrics.socket.d
systemctl daemon-reload
cqctl show tiny >/dev/null || cqctl load tiny /run/tiny.cqm
