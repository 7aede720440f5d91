#!/bin/bash
# Runs rounds of faults among real processes: test/robust.sh ROUNDS. ROBUST_SEED=N draws the same ones again, ROBUST_ONLY=TEXT
# only those whose name has TEXT (or one of several, with commas between), ROBUST_KEEP=1 keeps the nodes' directories. Needs root.
set -u
cd "$(dirname "$0")/.." || exit 1
./test/deps.sh || exit 1
export DOZO_BIN=${DOZO_BIN:-$PWD/bin/dozo} ROBUST_ROUNDS=${1:-100}
child=
cleanup() {
	trap - EXIT INT TERM
	if [ "$child" ]; then
		kill -- "-$child" 2>/dev/null && wait "$child"
		for f in /run/dozo-lab/e2erob*; do
			[ -e "$f" ] && "$DOZO_BIN" lab down --grace 0 --name "$(basename "$f")"
		done
		# What a test that was killed could not unmount.
		awk '$2 ~ /\/robust[0-9]+\/[a-z0-9]+\/disk$/ { print $2 }' /proc/mounts | while read -r m; do fsfreeze -u "$m" 2>/dev/null; umount "$m"; done
	fi
}
trap cleanup EXIT
trap 'cleanup; exit 130' INT TERM
set -m
PATH=$PATH:/usr/sbin:/sbin go test -tags e2e -count=1 -v -timeout 12h -run TestRobust ./test/robust </dev/null &
child=$!
wait $child
status=$?
child=
exit $status
