# SPDX-License-Identifier: MIT
#
#	awk [-v plot=1] -f gpu-bench.awk gpu-bench.json
#
# A table of the lines, or an SVG of how much faster than fp16 each decode case is. Of rows
# that were not measured the table has the number, and the lines the names.

function text(key,	at) {
	at = index($0, "\"" key "\":")
	if (!at)
		return ""
	at = substr($0, at + length(key) + 3)
	if (substr(at, 1, 1) == "\"") {
		at = substr(at, 2)
		return substr(at, 1, index(at, "\"") - 1)
	}
	match(at, /^[^,}]*/)
	return substr(at, 1, RLENGTH)
}

function num(key, format,	x) {
	x = text(key)
	return x == "" || x == "null" ? "-" : sprintf(format, x)
}

/"bench":"decode"/ {
	n++
	name[n] = text("shape") " " text("config") " " text("keys") " " text("sharing") " " \
		text("variant") " " text("batch") "x" text("context")
	ratio[n] = text("vs_fp16") + 0
	if (plot)
		next
	if (n == 1)
		printf "%-17s %-7s %-8s %-7s %-6s %5s %6s %4s %9s %9s %-6s %7s %6s %6s %-18s " \
		       "%6s %6s  %-18s %6s %6s  %7s\n",
		       "shape", "code", "keys", "sharing", "kind", "batch", "tokens", "ring", "us",
		       "model us", "wall", "ps/t/h", "hbm", "shared", "baseline",
		       "hbm", "x fp16", "fp8", "hbm", "x fp8", "error"
	printf "%-17s %-7s %-8s %-7s %-6s %5s %6s %4s %9s %9s %-6s %7s %6s %6s %-18s %6s " \
	       "%6s%s %-18s %6s %6s%s %7s\n",
	       text("shape"), text("config"), text("keys"), text("sharing"), text("variant"),
	       text("batch"), text("context"), text("ring_layers"), num("us", "%.1f"),
	       num("model_us", "%.1f"), text("model_wall"), num("ps_token_head", "%.1f"),
	       num("hbm_share", "%.2f"), num("shared_share", "%.2f"), text("baseline"),
	       num("baseline_hbm_share", "%.2f"), num("vs_fp16", "%.2f"),
	       text("versus") == "baseline" ? " " : "*", text("fp8"),
	       num("fp8_hbm_share", "%.2f"), num("vs_fp8", "%.2f"),
	       text("fp8_versus") == "baseline" ? " " : "*", num("rel_err", "%.1e")
	bounds += text("versus") != "baseline" || text("fp8_versus") != "baseline"
	next
}
plot { next }
/"bench":"skipped"/ {
	skipped[text("shape") ", " text("why")]++
	next
}
/"bench":"step"/ {
	printf "step     %-17s %-4s in %2s GiB: %6s sequences of %s; batch %s: %s us, " \
	       "%s tokens/s\n",
	       text("shape"), text("config"), text("gib"), text("sequences_held"), text("context"),
	       text("batch"), num("us", "%.0f"), num("tokens_s", "%.0f")
	next
}
{
	printf "%-8s %-17s %-4s %-4s %s rows: %s us of a layer, %s ns of a token\n", text("bench"),
	       text("shape"), text("config"), text("encode"), text("rows"), num("us", "%.1f"),
	       num("ns_token", "%.1f")
}

END {
	if (!plot) {
		if (bounds)
			print "* over the bytes at the measured bandwidth: no baseline is near"
		for (i in skipped)
			printf "skipped  %s: %d rows, which the lines name\n", i, skipped[i]
		exit
	}
	for (i = 1; i <= n; i++)
		if (ratio[i] > most)
			most = ratio[i]
	most = most > 1 ? most : 1
	printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"900\" height=\"%d\" " \
	       "font-family=\"monospace\" font-size=\"11\">\n", 14 * n + 30
	print "<text x=\"4\" y=\"14\">times as fast as fp16 (line: 1)</text>"
	for (i = 1; i <= n; i++) {
		y = 14 * i + 12
		printf "<text x=\"4\" y=\"%d\">%s</text>\n", y + 10, name[i]
		wide = 360 * ratio[i] / most
		printf "<rect x=\"470\" y=\"%d\" width=\"%.1f\" height=\"11\" fill=\"#4878a8\"/>\n",
		       y, wide
		printf "<text x=\"%.1f\" y=\"%d\">%.2f</text>\n", 475 + wide, y + 10, ratio[i]
	}
	printf "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"20\" y2=\"%d\" stroke=\"#c03030\"/>\n</svg>\n",
	       470 + 360 / most, 470 + 360 / most, 14 * n + 28
}
