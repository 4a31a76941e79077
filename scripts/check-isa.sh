#!/bin/sh
# SPDX-License-Identifier: MIT
#
#	check-isa.sh DIRECTORY
#
# Objects of kernels/x86 in DIRECTORY have no instruction that their row of the
# kernel table does not ask the processor for (kernels/cpu.c).
set -eu
dir=$1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
bad=0

# What AVX-512 F, BW, VL and DQ do not have, by extension
vbmi='vperm[it]?2?b|vpmultishiftqb'
vnni='vpdp[bw][a-z]*'
other='vpcompress[bw]|vpexpand[bw]|vpsh[lr]dv?[wdq]|vpopcnt[bwdq]|vpshufbitqmb|vpmadd52[lh]uq'
other="$other|v?gf2p8[a-z]*|v?aes[a-z]*|v?pclmul[a-z]*|vcvtne2?ps2?2?bf16[xy]?|vdpbf16ps"
other="$other|vp2intersect[dq]|vpconflict[dq]|vplzcnt[dq]|v[a-z]*(ph|sh)"
# and what AVX2 does not: registers of 512 bits, masks, the upper sixteen
evex='.*%(zmm[0-9]|k[0-7]|[xy]mm(1[6-9]|2[0-9]|3[01])).*'

none() {	# object what regex
	objdump -d --no-show-raw-insn "$dir/$1" >"$tmp/all"
	grep -E "^[[:space:]]+[0-9a-f]+:[[:space:]]+((bnd|lock|rep[a-z]*) )?($3)([[:space:]]|$)" \
		"$tmp/all" >"$tmp/found" || return 0
	echo "$1 has $2:"
	head -n 3 "$tmp/found"
	bad=1
}

for o in attn_avx2 encode_avx2 long_avx2 long_keys_avx2 kmeans_avx2; do
	none $o.o 'instructions beyond AVX2' "$evex"
done
for o in encode_avx512 kmeans_avx512 attn_avx512bw many_avx512bw; do
	none $o.o 'instructions beyond AVX-512 F, BW, VL and DQ' "$vbmi|$vnni|$other"
done
for o in attn_avx512vnni many_avx512vnni; do
	none $o.o 'instructions beyond AVX-512 F, BW, VL, DQ and VNNI' "$vbmi|$other"
done
for o in attn_avx512 many_avx512; do
	none $o.o 'instructions beyond AVX-512 F, BW, VL, DQ, VBMI and VNNI' "$other"
	# so that a change of what objdump prints is not taken for good news
	for i in "$vbmi" "$vnni" "$evex"; do
		was=$bad bad=0
		none $o.o '' "$i" >"$tmp/said"
		[ $bad = 1 ] || { echo "$o.o: no ($i), which it should have"; was=1; }
		bad=$was
	done
done
exit $bad
