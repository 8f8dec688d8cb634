# make help lists the targets.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo v0.1.0-dev)
MODULE   := github.com/flanneld/flanneld
LDFLAGS  := -s -w -X $(MODULE)/flanneld/cli.buildVersion=$(VERSION)
SUDO     := $(if $(filter 0,$(shell id -u)),,sudo)
TOOLS    := $(CURDIR)/test/tools/bin
# Debian's users have no sbin, and under sudo there is no /usr/local/go.
export PATH := $(PATH):/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin
# git refuses to tell go about root's work in the clone of somebody else.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

.PHONY: help build demo test test-unit test-vm bench lint clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

build: ## static binaries in bin/
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ \
		./flanneld ./cni/flanneld-bridge ./cni/flanneld-ipam

demo: ## three hosts on this machine, until Ctrl-C; ONCE=1 ends by itself
	@test/packages.sh demo
	@$(MAKE) --no-print-directory build
	@$(SUDO) bin/flanneld lab demo $(if $(ONCE),--once)

test: ## all tests, installing what they need; root's are run through sudo
	@test/packages.sh test
	@$(MAKE) --no-print-directory build
	@mkdir -p bin && $(GO) build -o bin/run-tests ./test/run
	@bin/run-tests

test-unit: ## what needs nothing: under a minute once compiled
	$(GO) test ./...

test-vm: ## tests of PKG under Debian's kernel in a VM; ARGS="-test.run X -test.v"
	@test/packages.sh test
	@$(MAKE) --no-print-directory build
	@$(GO) run ./test/vm $(PKG) -- $(ARGS)

bench: ## compare with the peers; prints tables for docs/performance.md
	@test/packages.sh test
	@$(MAKE) --no-print-directory build
	@$(GO) build -o bin/bench-hosts ./test/bench/hosts && $(GO) build -o bin/bench-cni ./test/bench/cni && $(GO) build -o bin/bench-path ./test/bench/path && $(GO) build -o bin/bench-dns ./test/bench/dns && $(GO) build -o bin/bench-services ./test/bench/services
	@test/flannel.sh bin/flannel-test-peer
	@test/coredns.sh bin/coredns-test-peer
	@$(SUDO) env "PATH=$$PATH" bin/bench-hosts --bin bin --flannel bin/flannel-test-peer
	@$(SUDO) env "PATH=$$PATH" bin/bench-cni
	@$(SUDO) env "PATH=$$PATH" bin/bench-path
	@$(SUDO) env "PATH=$$PATH" bin/bench-dns --bin bin --coredns bin/coredns-test-peer
	@$(SUDO) env "PATH=$$PATH" bin/bench-services --bin bin

lint: tools ## gofmt, go vet, golangci-lint, staticcheck, deadcode
	@test/lint.sh $(TOOLS)

.PHONY: tools
tools: $(TOOLS)/golangci-lint $(TOOLS)/staticcheck $(TOOLS)/deadcode

# Pinned in test/tools/go.mod, apart from the project's own dependencies.
$(TOOLS)/%: test/tools/go.mod test/tools/go.sum
	@echo "building $* (once; golangci-lint takes minutes)"
	@cd test/tools && CGO_ENABLED=0 $(GO) build -o $@ $$($(GO) list -f '{{.ImportPath}}' tool | grep '/$*$$')

clean: ## remove what was built
	rm -rf bin test/tools/bin
