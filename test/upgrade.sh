#!/bin/bash
# Builds the previous version and has a cluster upgraded from it to this one, node by node, under I/O:
#
#   test/upgrade.sh [REVISION]
#
# REVISION is what to upgrade from: the newest tag that this revision comes after; while there is none, the last one whose
# data path had the first protocol.
set -u
cd "$(dirname "$0")/.." || exit 1

first=46fbc5b
tag=$(git describe --tags --abbrev=0 HEAD^ 2>/dev/null || true)
from=${1:-${tag:-$first}}
work=$(mktemp -d "${TMPDIR:-/tmp}/dozo-upgrade.XXXXXX") || exit 1
child=
cleanup() {
	trap - EXIT INT TERM
	[ "$child" ] && kill -- "-$child" 2>/dev/null && wait "$child"
	for f in "$work"/*/up.yaml; do
		[ -f "$f" ] && "$new" down --dir "$(dirname "$f")"
	done
	git worktree remove --force "$work/source" 2>/dev/null
	rm -rf "$work"
}
new=${DOZO_BIN:-$PWD/bin/dozo}
trap cleanup EXIT
trap 'cleanup; exit 130' INT TERM

git worktree add --quiet --detach "$work/source" "$from" || exit 1
# Of another version by its name, too, whatever the tags say.
(cd "$work/source" && CGO_ENABLED=0 go build -buildvcs=false -ldflags "-X dozo/internal/version.release=$from" -o "$work/old" ./cmd/dozo) || exit 1
echo "from $("$work/old" version --client 2>/dev/null | head -1) to $("$new" version --client 2>/dev/null | head -1)"
set -m
TMPDIR=$work E2E_DIR=$work DOZO_BIN=$new DOZO_OLD=$work/old go test -tags e2e -count=1 -v -timeout 15m -run 'TestUpgrade' ./test/e2e </dev/null &
child=$!
wait $child
status=$?
child=
exit $status
