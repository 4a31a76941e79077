# SPDX-License-Identifier: MIT
# Files of at most 900 lines, functions of at most 100 (kernel style: the body
# opens and closes in column one).
function over(file, what, n, most)
{
	if (n > most) {
		print file ": " what " of " n " lines, at most " most
		bad = 1
	}
}
FNR == 1 { over(last, "file", lines, 900) }
{ last = FILENAME; lines = FNR }
/^[{]/ { start = FNR }
/^}/ { if (start) over(FILENAME ":" start, "function", FNR - start - 1, 100); start = 0 }
END {
	over(last, "file", lines, 900)
	exit bad
}
