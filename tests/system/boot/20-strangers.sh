# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154
# Who may speak to cqd: members of its group, and root alone as administrator.

member() { setpriv --reuid=4242 --regid=4242 --groups=cq "$@"; }
stranger() { setpriv --reuid=4243 --regid=4243 --clear-groups "$@"; }

check "a member pings" member cqctl --socket "$sock" ping
check "and attaches" member env CQ_WORKER=attach CQ_WORKER_ARG="$sock" /cq/worker
check "but administers nothing there" says "use the admin socket" \
	member cqctl --socket "$sock" status
check "nor on the admin socket" says "open to cqd's user and root" member cqctl ping
check "a stranger is refused, and told what to do" says "group cq" \
	stranger cqctl --socket "$sock" ping
check "by libcq as well" says "group" \
	stranger env CQ_WORKER=attach CQ_WORKER_ARG="$sock" /cq/worker
