#!/bin/sh
# lint.sh TOOLS: every linter over the whole module, all of them even if one
# finds something. TOOLS is the folder of the pinned programs (make tools).
set -u
tools=${1:?usage: lint.sh FOLDER}
failed=
check() { # check NAME COMMAND…: complains when the command fails or says anything
	name=$1
	shift
	start=$(date +%s)
	if out=$("$@" 2>&1) && [ -z "$out" ]; then
		echo "ok    $name ($(($(date +%s) - start)) s)"
	else
		echo "FAIL  $name"
		echo "$out"
		failed="$failed $name"
	fi
}

check gofmt gofmt -l -s .
check vet go vet ./...
check modules go mod tidy -diff
check staticcheck "$tools/staticcheck" -checks inherit ./...
check golangci-lint "$tools/golangci-lint" run --show-stats=false --allow-parallel-runners ./...
check deadcode "$tools/deadcode" -test ./...
if [ -n "$failed" ]; then
	echo "lint:$failed"
	exit 1
fi
