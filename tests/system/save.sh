#!/bin/bash
# SPDX-License-Identifier: MIT
#
# cqctl save, restore and drain on a real cqd with pages of the reference worker.
set -u
case ${SANITIZE:-} in
*thread*)
	echo "1..0 # SKIP clang 14's TSan crashes in munmap() of large areas"
	exit
	;;
esac
# shellcheck source=tests/system/lib-worker.sh
. "$(dirname "$0")/lib-worker.sh"
export CQ_ADMIN_SOCKET=$dir/admin.sock

run() {
	worker run --lm "$lm" --model coded --prefix "$dir/prefix.u16" --generate 8 \
		--ask "why?"
}

pages() {
	make_models && start_cqd &&
		worker tokenize --lm "$lm" --limit 448 --out "$dir/prefix.u16" \
			"$top/Documentation/formats.md" && run >"$dir/first.json" &&
		run >"$dir/run.json" &&
		gives 0 ' 7 sealed' ctl status
}

saves() {
	gives 0 "^7 pages, .* saved to $dir/pages.cq" ctl save "$dir/pages.cq" &&
		gives 0 '"pages":7,"bytes":' ctl save --json "$dir/again.cq" &&
		[ "$(stat -c %a "$dir/pages.cq")" = 600 ] &&
		gives 0 "^7 pages" ctl save "$dir/again.cq" && ! ls "$dir"/*.cq.*
}

abandoned() {	# a cqctl that was killed does not leave cqd busy
	local i pid

	for i in 1 2 3 4 5; do
		"$O/cqctl" save "$dir/killed.cq" &
		pid=$!
		sleep "0.00$i"
		kill -KILL $pid
		wait $pid 2>/dev/null
		gives 0 "^7 pages" ctl save "$dir/again.cq" || return
	done
}

bad_files() {	# named, and nothing is left behind
	mkfifo "$dir/fifo" && echo hello >"$dir/hello" &&
		head -c 2000 /dev/urandom >"$dir/noise" &&
		gives 1 "$dir/fifo is there and not a regular" ctl save "$dir/fifo" &&
		gives 1 "$dir/none/x.*No such file" ctl save "$dir/none/x" &&
		gives 1 "$dir/none: No such file" ctl restore "$dir/none" &&
		gives 1 "regular file" ctl restore /dev/zero &&
		gives 1 "$dir/hello: the file is too short" ctl restore "$dir/hello" &&
		gives 1 "$dir/noise: no file of saved pages" ctl restore "$dir/noise" &&
		gives 2 "argument is missing" ctl save && gives 2 "too many" ctl restore a b
}

again() {	# another cqd, which has nothing
	local old=${started[-1]}

	kill "$old"
	wait "$old"
	start_cqd && gives 0 ' 0 sealed' ctl status
}

restores() {
	gives 0 "^7 pages, .* restored in .*; 0 were there" ctl restore "$dir/pages.cq" &&
		gives 0 "; 7 were there" ctl restore "$dir/pages.cq" &&
		gives 0 '"restored":0,.*"existing":7.*"lost":0' \
			ctl restore --json "$dir/again.cq" &&
		gives 0 ' 7 sealed, .* 0 pinned' ctl status && gives 0 ' 0 wrong' ctl verify
}

same_text() {	# an attached worker says what it said before
	run >"$dir/run2.json" && cat "$dir/run.json" "$dir/run2.json" &&
		gives 0 ' 7 sealed' ctl status && grep '"matched":448' "$dir/run2.json" &&
		[ "$(grep -o '"text":.*' "$dir/run.json")" = \
			"$(grep -o '"text":.*' "$dir/run2.json")" ]
}

damaged() {	# the last page is cut: six come back, the loss is told
	again && head -c -4096 "$dir/pages.cq" >"$dir/cut.cq" &&
		gives 1 "^1 missing in the file" ctl restore "$dir/cut.cq" &&
		gives 0 ' 6 sealed' ctl status
}

other_model() {	# of the same name: its pages are left alone
	cp "$dir/fp16.st" "$dir/coded.st" && again &&
		gives 1 "^7 of a model that is not loaded" ctl restore "$dir/pages.cq" &&
		grep "missing: model 'coded'" "$dir/said" && gives 0 ' 0 sealed' ctl status
}

drains() {
	gives 0 "no client is left" ctl drain --timeout 5 &&
		gives 0 "no client is left" ctl drain &&
		gives 1 "draining" run && gives 4 "; draining$" ctl ping &&
		gives 4 '"ready":true,"draining":true' ctl ping --json &&
		gives 0 '"draining":true,"clients":0' ctl drain --json &&
		gives 0 "admitted again" ctl drain --undo && run &&
		gives 0 '"draining":false' ctl ping --json &&
		gives 2 "timeout" ctl drain --timeout x
}

benches() {	# every figure, from clients in a namespace; nothing stays pinned
	gives 0 '^attach .* p99 ' ctl bench --clients 2 --seconds 2 --namespace test &&
		grep '^2 clients, model ' "$dir/said" && grep '^seal ' "$dir/said" &&
		gives 0 '"ping":{"requests":[1-9].*"attach":{"requests":[1-9].*"p99_us"' \
			ctl bench --clients 1 --seconds 1 --model fp16 --json &&
		gives 0 ' 0 pinned' ctl status &&
		gives 1 "client 1 of 4: .*nobody" ctl bench --seconds 1 --namespace nobody &&
		gives 1 "no model is called x" ctl bench --model x &&
		gives 2 "clients" ctl bench --clients 0
}

doctor() {
	local out

	out=$("$O/cqctl" doctor)
	echo "$out"
	grep -q "^ok  *daemon  *cqd [0-9.]* answers" <<<"$out" &&
		grep -q "^ok  *admin  *$dir/admin.sock, mode 0600" <<<"$out" &&
		gives 1 '"check":"daemon","level":"problem"' \
			ctl doctor --json --socket "$dir/none.sock" &&
		python3 -m json.tool "$dir/said" >/dev/null || return
	[ "$(id -u)" != 0 ] ||
		gives 1 "^problem *daemon" setpriv --reuid=65534 --regid=65534 --clear-groups \
			"$O/cqctl" doctor --socket "$dir/none.sock"
}

plan 12
ok "seven pages of a worker" pages
ok "save: whole or not at all, for the owner only" saves
ok "a save that was given up" abandoned
ok "files that are none are named" bad_files
ok "a cqd that has nothing" again
ok "restore: all of them, once" restores
ok "the worker finds them" same_text
ok "a file cut short" damaged
ok "another model of the name" other_model
ok "drain: no new sessions, until it is undone" drains
ok "bench" benches
ok "doctor: with a daemon, without, for nobody" doctor
