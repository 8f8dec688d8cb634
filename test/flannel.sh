#!/bin/sh
# flannel.sh FILE: builds flannel itself, which tests run beside ours, from its
# Go module. Its drivers for clouds are left out: some of their modules cannot
# be had any more. It needs a C compiler, for the udp backend. Does nothing if
# FILE is there.
set -eu
file=${1:?usage: flannel.sh FILE}
case $file in /*) ;; *) file=$PWD/$file ;; esac
version=v0.28.4
[ ! -x "$file" ] || exit 0
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
module=$(GOFLAGS=-mod=mod go mod download -json "github.com/flannel-io/flannel@$version" | sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p')
cp -r "$module/." src
chmod -R u+w src
cd src
sed -i '/backend\/tencentvpc"/d' main.go
CGO_ENABLED=1 go build -mod=mod -trimpath -buildvcs=false -ldflags '-s -w' -o "$dir/flannel" .
mkdir -p "$(dirname "$file")"
mv "$dir/flannel" "$file"
