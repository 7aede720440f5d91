#!/bin/bash
# Runs fuzz targets for a time each, and counts the processor time in test/fuzz.tsv, which docs/testing.md sums up.
#
#   test/fuzz.sh [-p PACKAGES] [-k N] [-n] [TIME]     TIME for each target, 30s if not given
#   test/fuzz.sh -s                                   only writes the sum into docs/testing.md again
#
# -p: only targets of packages whose path matches the extended regular expression. -k N: of the inputs that were found, the N
# smallest of each target that are not there yet go to testdata/fuzz, where every `go test` runs them. -n: nothing is counted.
# FUZZPROCS: how many processes of a target run at a time, as many as there are processors if not given.
#
# What is counted is user and system time of the target's own processes, without compiling. The line of a run names the
# revision that was run, with + if the tree had changes.
set -eu
cd "$(dirname "$0")/.."
tally=test/fuzz.tsv packages=. keep=0 count=1 sum=
while getopts p:k:ns opt; do
	case $opt in
	p) packages=$OPTARG ;;
	k) keep=$OPTARG ;;
	n) count= ;;
	s) sum=1 ;;
	*) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
	esac
done
shift $((OPTIND - 1))

# summarize writes the table between the two marks.
summarize() {
	local table
	table=$(awk -F '\t' '/^#/ { next } { all += $5; if (first == "" || $1 < first) first = $1; if ($1 > last) last = $1 }
		END { printf "Counted from %s to %s: %.2f hours of processor time.\n", first, last, all / 3600 }' "$tally"
		printf '\n| package | targets | runs | hours |\n| --- | --: | --: | --: |\n'
		awk -F '\t' '/^#/ { next } { cpu[$3] += $5; runs[$3]++; if (!seen[$3 "/" $4]++) targets[$3]++ }
		END { for (p in cpu) printf "| `%s` | %d | %d | %.2f |\n", p, targets[p], runs[p], cpu[p] / 3600 }' "$tally" | sort)
	TABLE=$table awk '/<!-- fuzz: begin/ { print; print ""; print ENVIRON["TABLE"]; print ""; skip = 1 }
		/<!-- fuzz: end/ { skip = 0 } !skip' docs/testing.md >docs/testing.md.new
	mv docs/testing.md.new docs/testing.md
}
if [ -n "$sum" ]; then
	summarize
	exit
fi

revision=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
git diff --quiet HEAD 2>/dev/null || revision=$revision+
cache=$(go env GOCACHE)/fuzz
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# keep_some copies the smallest inputs of a target that are not in its corpus.
keep_some() { # package directory, target
	local found=$cache/$(go list "./$1")/$2 there=$1/testdata/fuzz/$2 n=0 size name
	[ -d "$found" ] || return 0
	mkdir -p "$there"
	while read -r size name; do
		[ "$n" -lt "$keep" ] && [ "$size" -le 4096 ] || break
		[ -e "$there/$name" ] || { cp "$found/$name" "$there/$name"; n=$((n + 1)); }
	done < <(find "$found" -type f -printf '%s %f\n' | sort -n)
	rmdir "$there" 2>/dev/null || true
}

for dir in $(grep -rlE '^func Fuzz' --include='*_test.go' internal | xargs -n1 dirname | sort -u | grep -E "$packages"); do
	# -fuzz with -c: the instrumented binary.
	go test -c -fuzz . -o "$work/fuzz.test" "./$dir"
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$dir"/*_test.go | sort); do
		echo "== $target in $dir"
		status=0
		times >"$work/before"
		(cd "$dir" && exec "$work/fuzz.test" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "${1:-30s}" \
			-test.fuzzcachedir "$cache/$(go list .)" ${FUZZPROCS:+-test.parallel "$FUZZPROCS"} </dev/null) >"$work/log" 2>&1 || status=$?
		times >"$work/after"
		tail -n 2 "$work/log"
		if [ -n "$count" ]; then
			# The second line of each is what the shell's children have taken that are over.
			seconds=$(cat "$work/before" "$work/after" | awk -F '[ms ]+' 'NR == 2 { was = $1 * 60 + $2 + $3 * 60 + $4 }
				NR == 4 { printf "%.0f", $1 * 60 + $2 + $3 * 60 + $4 - was }')
			printf '%s\t%s\t%s\t%s\t%s\n' "$(date -u +%F)" "$revision" "$dir" "$target" "$seconds" >>"$tally"
		fi
		if [ $status -ne 0 ]; then
			cat "$work/log"
			failed=1
		elif [ "$keep" -gt 0 ]; then
			keep_some "$dir" "$target"
		fi
	done
done
[ -z "$count" ] || summarize
exit $failed
