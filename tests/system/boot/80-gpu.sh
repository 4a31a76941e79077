# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154
# cq-verify@NAME: pulled in by every start of cqd, and asks it what there is to look at.
# There is no GPU here, so there is nothing.

looked() {	# looked TIMES
	journalctl --sync
	is "$(journalctl --no-pager -o cat -u cq-verify@g0 | grep -c '^0 pages')" "$1"
}
of_unit() { systemctl show -P "$1" cq-verify@g0; }

configure <<-END
	[gpu g0]
	uuid = GPU-00000000-6661-6b65-8000-646576696300
	pool_bytes = 64M
END
check "a helper for a GPU" systemctl enable --quiet cq-verify@g0
check "restart" systemctl restart cqd.service
check "it has asked cqd" until_ok looked 1
check "and ended well" is "$(of_unit Result) $(of_unit ExecMainStatus)" "success 0"
check "cqd is killed" systemctl kill --signal=KILL cqd.service
check "it asks again" until_ok looked 2
check "of a pool that is not there" says 'no pool "g1"' cqctl verify --gpu g1
check "no helper" systemctl disable --quiet cq-verify@g0
configure </dev/null
check "restart without the GPU" systemctl restart cqd.service
check "it is not asked for" looked 2
