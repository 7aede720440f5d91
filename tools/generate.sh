#!/bin/sh
# Makes the Go code of the API from proto/. Needs protoc (Debian: protobuf-compiler); the two plugins are
# pinned by tools/go.mod. The result is committed: building dozo needs none of this.
set -eu
cd "$(dirname "$0")/.."

if ! command -v protoc >/dev/null; then
	echo "tools/generate.sh: protoc is missing; on Debian: apt-get install protobuf-compiler" >&2
	exit 1
fi
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
(cd tools && GOBIN="$bin" go install \
	google.golang.org/protobuf/cmd/protoc-gen-go \
	connectrpc.com/connect/cmd/protoc-gen-connect-go)

rm -f internal/api/dozov1/*.pb.go internal/api/dozov1/dozov1connect/*.connect.go
PATH="$bin:$PATH" protoc --proto_path=proto \
	--go_out=. --go_opt=module=dozo \
	--connect-go_out=. --connect-go_opt=module=dozo,simple \
	proto/dozo/v1/*.proto
