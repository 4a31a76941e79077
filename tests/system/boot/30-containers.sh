# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154
# Two containers, in each of which everybody is uid 0, on two sockets. They are
# added to a running cqd, whose pages stay.

tenants() {
	configure <<-END
		[namespace default]
		uid = *
		[namespace a]
		uid = 0
		socket = /run/cq/tenants/a/cqd.sock
		[namespace b]
		uid = 0
		quota_pins = 50
		socket = /run/cq/tenants/b/cqd.sock
	END
	cqd --check-config
}
of_ns() { cqctl list namespaces --json | tr -d ' \n' | grep -o "\"name\":\"$1\"[^}]*" |
	grep -o "\"$2\":[0-9]*" | cut -d: -f2; }
# pid of the container's worker, as cqd knows it
held_pid() { cqctl list clients --json | tr -d ' \n' | grep -o '{[^}]*"namespace":"a"[^}]*}' |
	grep -o '"pid":[0-9]*' | cut -d: -f2; }
no_pins() { [ "$(of_ns a pins)" = 0 ] && [ -z "$(held_pid)" ]; }
holds() { [ "$(of_ns a pins)" -gt 0 ]; }

check "two namespaces with sockets of their own" tenants
since=$(cursor)
check "cqd without them says so, and serves the others" systemctl restart cqd.service
check "with the remedy" journal_has "cqd-tenant@a.socket" "$since"
check "pages are still there" pages 20
check "enable their sockets" systemctl enable cqd-tenant@a.socket cqd-tenant@b.socket
check "a restart takes them over" systemctl restart cqd.service
check "both listen" systemctl is-active cqd-tenant@a.socket cqd-tenant@b.socket
check "pages are still there" pages 20
check "mode of a tenant's socket" is "$(mode /run/cq/tenants/a/cqd.sock)" "660 root"

check "a container sees its own socket, no other" \
	is "$(in_container a ls -A /run/cq)" cqd.sock
# shellcheck disable=SC2016
check "its first process is 1" is "$(in_container a sh -c 'echo $$')" 1
check "it does not see cqd" in_container a test ! -e "/proc/$(prop MainPID)"
check "it publishes" container_worker a publish
check "into its namespace" is "$(of_ns a pages)" 20
check "the other finds nothing of it" is "$(container_worker b count)" 0
check "nor do workers of the common socket lose or gain" pages 40
check "the other may not enter it" says "no member" container_worker b enter a
check "nor the common namespace" says "no member" container_worker b enter default
check "nor may the host's workers on the common socket" says "no member" \
	env CQ_WORKER_TENANT=a CQ_WORKER=enter CQ_WORKER_ARG="$sock" /cq/worker
for request in status "list pages" "list clients" verify "unload tiny"; do
	# shellcheck disable=SC2086
	check "a container may not: $request" says "use the admin socket" \
		in_container a cqctl --socket "$sock" $request
done
check "its root opens nothing for writing" container_worker a write

container_worker a hold >/run/held 2>&1 &
held=$!
check "it holds pages" until_ok holds
check "its process is known by its pid out here" \
	is "$(tr '\0' '\n' <"/proc/$(held_pid)/environ" | grep CQ_WORKER=)" CQ_WORKER=hold
check "pins count for it alone" is "$(of_ns b pins)" 0
check "they outlive cqd" killed KILL
check "and are still counted" holds
kill -KILL "$(held_pid)"	# its first process: all others go with it
wait $held 2>/dev/null
check "the container's end ends them" until_ok no_pins
check "its pages stay" is "$(of_ns a pages)" 20
