#!/bin/bash
# Writes before and after a volume has moved to another site: test/bench/moved.sh [ROUNDS [SECONDS]]. Root; a lab of three sites of two nodes
# (RTT=18ms between any two). In each round flushed 4 KiB writes (FUA), one at a time, go to the owner at the first site by a portal of
# its own, then the volume moves to the second, and the same is done there. It prints a line for each, and the ratio of the medians of
# all rounds: what of "slower after a migration" is the storage's, without guests.
set -u
cd "$(dirname "$0")/../.." || exit 2
rounds=${1:-6} seconds=${2:-6} lab=moved
dozo=${DOZO_BIN:-$PWD/bin/dozo}
[ -x "$dozo" ] || { echo "$dozo is missing; make build" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "network namespaces need root" >&2; exit 2; }
work=$(mktemp -d "${TMPDIR:-/tmp}/dozo-moved.XXXXXX") || exit 2
cleanup() {
	trap - EXIT INT TERM
	"$dozo" lab down --name $lab >/dev/null 2>&1
	rm -rf "$work"
}
trap cleanup EXIT
trap 'cleanup; exit 130' INT TERM
at() { "$dozo" lab exec --name $lab "$1" -- "$dozo" "${@:2}"; }
# measure SITE PORTAL: rate, median and 99th percentile in microseconds.
measure() {
	at "$1" bench iscsi --workload write:4k:1 --fua 100 --size 16M --ramp 1s --runtime "${seconds}s" --max-errors 10 -q -o json \
		"$(at east volume targets v | grep -o "iscsi://$2[^ ]*" | head -n 1)" |
		python3 -c 'import json,sys; w=json.load(sys.stdin)["write"]; print("%.0f %.0f %.0f" % (w["n"]/float(sys.argv[1]), w["p50_us"], w["p99_us"]))' "$seconds"
}
"$dozo" lab up --name $lab --sites 3 --nodes 2 --rtt "${RTT:-18ms}" --rate 1gbit --dir "$work/lab" >"$work/up.txt" 2>&1 || { cat "$work/up.txt" >&2; exit 1; }
at east volume create v 256M --at east --ownership pin >/dev/null || exit 1
echo "round where writes/s p50_us p99_us load" | column -t
for r in $(seq "$rounds"); do
	for where in "east 10.77.1.1" "west 10.77.2.1"; do
		set -- $where
		at east volume move v --to "$1-1" >"$work/move.txt" 2>&1 || { cat "$work/move.txt" >&2; exit 1; }
		sleep 3
		echo "$r $1 $(measure "$1" "$2") $(cut -d' ' -f1 /proc/loadavg)" | tee -a "$work/lines"
	done
done
python3 - "$work/lines" <<'P'
import statistics, sys
rows = [l.split() for l in open(sys.argv[1])]
def med(site, col): return statistics.median(float(r[col]) for r in rows if r[1] == site)
print("after / before: writes/s %.2f, p50 %.2f" % (med("west", 2) / med("east", 2), med("west", 3) / med("east", 3)))
P
