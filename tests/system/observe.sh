#!/bin/bash
# SPDX-License-Identifier: MIT
#
# What an administrator sees of a running cqd: metrics over HTTP and over the
# admin socket, events, top, and probes.
set -u
# shellcheck source=tests/system/lib-worker.sh
. "$(dirname "$0")/lib-worker.sh"

metrics_py=$top/tests/system/metrics.py
port=$((20000 + $$ % 20000))

py() {
	python3 "$metrics_py" "$@"
}

# get WHERE TARGET STATUS TEXT
get() {
	py get "$1" "$2" >"$dir/got" && head -n 1 "$dir/got" && grep -qx "$3" "$dir/got" &&
		grep -q -e "$4" "$dir/got"
}

daemon() {
	make_models && EXTRA="metrics_socket = $dir/metrics.sock
		metrics_listen = 127.0.0.1:$port" start_cqd
}

work() {	# seven pages of a worker
	worker tokenize --lm "$lm" --limit 448 --out "$dir/prefix.u16" \
		"$top/Documentation/formats.md" &&
		worker run --lm "$lm" --model coded --prefix "$dir/prefix.u16" --generate 2 \
			--ask "why?" >"$dir/run.json"
}

value() {	# SAMPLE
	py value "$dir/metrics" "$1"
}

format() {
	py get "$dir/metrics.sock" /metrics | tail -n +2 >"$dir/metrics" &&
		py check "$dir/metrics" && [ "$(value cq_ready)" = 1 ] &&
		[ "$(value 'cq_namespace_pages{namespace="test",state="sealed"}')" = 7 ] &&
		[ "$(value 'cq_seals_total{namespace="test",result="new"}')" = 7 ] &&
		[ "$(value 'cq_missed_tokens_total{namespace="test"}')" -ge 448 ] &&
		[ "$(value 'cq_requests_total{request="Seal",result="ok"}')" = 7 ] &&
		[ "$(value 'cq_request_duration_seconds_count{request="Seal"}')" = 7 ] &&
		[ "$(value cq_segments)" -ge 1 ] && [ "$(value process_open_fds)" -ge 10 ] &&
		[ "$(value process_resident_memory_bytes | grep -c e+)" = 1 ] &&
		[ "$(value cq_loop_busy_seconds_count)" -ge 10 ] &&
		py get "$port" /metrics | tail -n +2 >"$dir/tcp" && py check "$dir/tcp" &&
		ctl metrics >"$dir/ctl" && py check "$dir/ctl" &&
		diff <(grep '^# ' "$dir/metrics") <(grep '^# ' "$dir/ctl")
}

as_json() {
	ctl metrics --json >"$dir/json" && python3 -c '
import json, sys
m = json.load(open(sys.argv[1]))["metrics"]
s = [x for x in m if x["name"] == "cq_seals_total" and x["labels"]["result"] == "new"]
assert len(s) == 1 and s[0]["value"] == 7 and s[0]["labels"]["namespace"] == "test", s
lines = [x for x in open(sys.argv[2]) if x[0] != "#"]
assert len(lines) == len(m), (len(lines), len(m))' "$dir/json" "$dir/ctl"
}

asked_for() {	# by rules and board
	py names "$dir/metrics" "$top/systemd/cq.rules.yml" "$top/Documentation/grafana.json" &&
		[ "$(grep -c 'alert:' "$top/systemd/cq.rules.yml")" = 3 ]
}

http() {
	local s=$dir/metrics.sock

	get "$s" /health 200 '^ok$' && get "$s" '/metrics?x=1' 200 cq_build_info &&
		get "$s" 'GET /metrics HTTP/1.0\r\n\r\n' 200 cq_build_info &&
		get "$s" / 404 . && get "$s" 'POST /metrics HTTP/1.1\r\n\r\n' 405 . &&
		get "$s" 'HEAD /health HTTP/1.1\r\n\r\n' 405 . &&
		get "$s" 'GET /metrics HTTP/2.0\r\n\r\n' 505 . &&
		get "$s" 'GET http://x/ HTTP/1.1\r\n\r\n' 400 . &&
		get "$s" '\x16\x03\x01 \x00' 400 . &&
		get "$s" "GET /metrics HTTP/1.1\\r\\nA: $(head -c 8200 /dev/zero | tr '\0' a)" 431 .
}

# Twenty connections that say nothing and one that does not read: all are closed
# after a while, and others are served.
slow() {
	python3 - "$dir/metrics.sock" "$dir/admin.sock" <<'END'
import socket, sys, time
def conn():
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    return s
stuck = conn()
stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
stuck.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
idle = [conn() for _ in range(20)]
start = time.monotonic()
for s in idle[:8]:
    s.settimeout(20)
    assert s.recv(1) == b""
assert 1 < time.monotonic() - start < 15
for s in idle:
    s.close()
last = conn()
last.settimeout(20)
last.sendall(b"GET /health HTTP/1.1\r\n\r\n")
assert b"200 OK" in last.recv(4096)
END
}

events() {
	ctl events --snapshot --count 9 --json >"$dir/events" && python3 -c '
import json, sys
e = [json.loads(x) for x in open(sys.argv[1])]
assert [x["seq"] for x in e] == list(range(1, 10))
assert [x["event"] for x in e] == ["start"] + ["page_resident"] * 7 + ["snapshot_end"]
pages = {x["key"]: x for x in e[1:8]}
root = [x for x in pages.values() if x["depth"] == 0]
assert len(root) == 1 and root[0]["parent"] not in pages
assert all(x["parent"] in pages for x in pages.values() if x["depth"])
assert all(x["namespace"] == "test" and x["model"] == "coded" for x in pages.values())' \
		"$dir/events" &&
		gives 0 '^8 page_resident [0-9a-f]\{64\} namespace=test model=coded depth=' \
			ctl events --snapshot --count 9 --socket "$dir/cqd.sock" -n test &&
		gives 1 "another namespace" ctl events -n other --socket "$dir/cqd.sock" &&
		gives 1 "no namespace" ctl events --namespace other &&
		gives 2 "count 0" ctl events --count 0
}

# comes FILE TEXT: within ten seconds
comes() {
	local i

	for ((i = 0; i < 500; i++)); do
		! grep -q -e "$2" "$1" 2>/dev/null || return 0
		sleep 0.02
	done
	echo "$1 has no $2"
	return 1
}

# follow FILE OPTION...: cqctl events in the background, $pid
follow() {
	local file=$1

	shift
	timeout 60 "$O/cqctl" events "$@" >"$file" 2>&1 &
	pid=$!
	started+=("$pid")
	comes "$file" start
}

# Ends without an error when asked to, and when nobody reads.
events_end() {
	local pid

	follow "$dir/live" && ctl load other "$dir/fp16.st" && ctl unload other &&
		comes "$dir/live" 'model_loaded model=other bytes=' &&
		comes "$dir/live" 'model_unloaded model=other' || return
	kill -INT "$pid"
	wait "$pid" || return
	(trap '' PIPE; timeout 60 "$O/cqctl" events --snapshot; echo "rc $?" >"$dir/rc") |
		head -n 1
	comes "$dir/rc" 'rc 0'
}

# Interrupted, and not by timeout(1): that sends SIGCONT as well, which undoes the SIGSTOP that
# a search for leaks at the end of the process waits for.
for_a_second() {
	"$O/cqctl" "$@" &
	sleep 1
	kill -INT $! && wait $!
}

tops() {
	gives 0 '^test  *7 ' ctl top --once --interval 50 &&
		grep -q '^NAMESPACE .*EVICT/s' "$dir/said" &&
		gives 0 '"namespaces":\[{"name":"test",.*"pages":7' ctl top -1 -i 50 --json &&
		gives 0 '^test ' ctl top -1 -i 50 --sort seals && gives 2 "sort x" ctl top -s x &&
		gives 0 '^test .*7' for_a_second top -b -i 20 &&
		[ "$(grep -c NAMESPACE "$dir/said")" -ge 4 ] &&
		gives 0 '^test ' ctl namespaces && gives 0 '^NAME  *PID' ctl clients &&
		gives 0 '^{"clients":\[' ctl clients --json
}

# A cqd that stands still, one that is not there, and one that is none.
probes() {
	local cqd=${started[0]} i

	gives 0 "answered in" ctl ping --timeout 5000 && gives 0 '"ready":true' ctl ping --json &&
		gives 2 "timeout 0" ctl ping --timeout 0 || return
	"$O/cqctl" top -b -i 20 >"$dir/top" 2>&1 &
	comes "$dir/top" '^test ' || return
	kill -STOP "$cqd"
	gives 5 "does not answer" ctl ping --timeout 200
	set -- $? $!
	kill -INT "$2"		# who waits for it can still be ended
	for ((i = 0; i < 100; i++)); do
		kill -0 "$2" 2>/dev/null || break
		sleep 0.02
	done
	kill -CONT "$cqd"
	[ "$1" = 0 ] && [ "$i" -lt 100 ] && gives 3 "no cqd at" ctl ping --socket "$dir/none" &&
		gives 1 . ctl ping --socket "$dir/metrics.sock"
}

# The last subscriber hears of cqd's end
ends() {
	local pid

	follow "$dir/last" || return
	kill "${started[0]}"
	! wait "$pid" && grep "cqd closed the connection" "$dir/last" &&
		[ ! -e "$dir/metrics.sock" ] && gives 3 "no cqd at" ctl ping
}

plan 12
ok "a cqd with metrics on a socket and a port" daemon
export CQ_ADMIN_SOCKET=$dir/admin.sock
ok "a worker" work
ok "metrics: the format, the figures, the same everywhere" format
ok "metrics as JSON" as_json
ok "rules and board ask for what is there" asked_for
ok "HTTP: what is answered, and what is not" http
ok "HTTP: connections that say and read nothing" slow
ok "events: a snapshot, and whose" events
ok "events end when they should" events_end
ok "top, clients, namespaces" tops
ok "ping for orchestrators" probes
ok "the end" ends
