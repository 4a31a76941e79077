# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154
# Another version's binary in place of the first: nothing is lost, no pin either.

version() { "/proc/$(prop MainPID)/exe" --version | cut -d' ' -f2; }
other() {	# the same program that says another version, put there at once
	LC_ALL=C sed "s/$1/$2/g" /usr/sbin/cqd >/usr/sbin/cqd.new &&
		chmod 755 /usr/sbin/cqd.new && mv /usr/sbin/cqd.new /usr/sbin/cqd
}
one_client() { [ "$(cqctl status --json | json clients)" = 1 ]; }
pinned() { at_least "$(cqctl status --json | json pages_pinned)" 1; }

was=$(version)
now=9${was#?}
# not worker(): $! would be a shell, and the worker live on
CQ_WORKER=hold CQ_WORKER_ARG=$sock /cq/worker >/run/held 2>&1 &
held=$!
check "a worker holds pages" until_ok pinned
check "put another version in place" other "$was" "$now"
check "the old one goes on" is "$(version)" "$was"
check "restart" systemctl restart cqd.service
check "the new one serves" is "$(version)" "$now"
check "pages are still there" pages 40
check "the worker comes back" until_ok one_client
check "its pins were never gone" pinned
check "and back again" other "$now" "$was"
check "by a crash" killed ABRT
check "the first one serves" is "$(version)" "$was"
check "pages are still there" pages 40
check "and found by a worker" attach
kill -KILL $held
wait $held 2>/dev/null
