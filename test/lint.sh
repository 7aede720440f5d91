#!/bin/sh
# What code must pass before review: gofmt, go vet (also of the end-to-end tests), staticcheck, direction of imports.
# All of them are run; the exit code is 1 if any complained.
set -u
cd "$(dirname "$0")/.." || exit 1
status=0

unformatted=$(gofmt -l cmd internal test tools)
if [ -n "$unformatted" ]; then
	echo "gofmt: these files are not formatted:" >&2
	echo "$unformatted" >&2
	status=1
fi
go vet ./... || status=1
go vet -tags e2e ./test/... ./internal/initiator/... ./internal/lab/... ./internal/guest/... || status=1
go vet -tags mutants ./internal/mutant || status=1
go tool -modfile=tools/go.mod staticcheck -checks inherit ./... || status=1
go test -count=1 ./test/arch || status=1
exit $status
