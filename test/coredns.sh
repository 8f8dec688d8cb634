#!/bin/sh
# coredns.sh FILE: builds CoreDNS, which make bench measures beside ours, from
# its Go module, with the plugins that it is measured with. Without the others
# (clouds, Kubernetes, tracing) the build takes a tenth of the time, and CoreDNS less
# memory. Does nothing if FILE is there.
set -eu
file=${1:?usage: coredns.sh FILE}
case $file in /*) ;; *) file=$PWD/$file ;; esac
version=v1.14.7
[ ! -x "$file" ] || exit 0
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
module=$(GOFLAGS=-mod=mod go mod download -json "github.com/coredns/coredns@$version" | sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p')
cp -r "$module/." src
chmod -R u+w src
cd src
sed -i '/coredns\/plugin\//{/plugin\/\(cache\|errors\|etcd\|forward\|metrics\)"$/!d}' core/plugin/zplugin.go
CGO_ENABLED=0 go build -mod=mod -trimpath -buildvcs=false -ldflags '-s -w' -o "$dir/coredns" .
mkdir -p "$(dirname "$file")"
mv "$dir/coredns" "$file"
