# SPDX-License-Identifier: MIT
# Files of at most 900 lines, functions of at most 100 (kernel style: the body
# opens and closes in column one).
function over(what, n, most)
{
	if (n > most) {
		print FILENAME ":" FNR ": " what " of " n " lines, at most " most
		bad = 1
	}
}
FNR == 1 && NR > 1 { if (lines > 900) { print last ": file of " lines " lines, at most 900"; bad = 1 } }
{ last = FILENAME; lines = FNR }
/^[{]/ { start = FNR }
/^}/ { if (start) over("function", FNR - start - 1, 100); start = 0 }
END {
	if (lines > 900) { print last ": file of " lines " lines, at most 900"; bad = 1 }
	exit bad
}
