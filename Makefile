# What the desk and the CI run. Everything that a target lacks it installs or
# builds: a Debian machine needs Go, git, make and root.
#
#   make demo        two real clusters, and a call across them
#   make demo-down   remove them
#   make test        lint, unit tests, generated files, tests on real clusters

.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
export GOWORK := off
unexport CDPATH
# One setting for build, vet and lint, so that they share the build cache.
export CGO_ENABLED := 0

version := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
ldflags := -s -w -X github.com/causeway-mesh/causeway/internal/cli.release=$(version)
go_files = $(shell git ls-files --cached --others --exclude-standard -- '*.go')
scripts := .ci/run demo/run $(wildcard hack/*)
# Kubernetes and CoreDNS, which the lab runs, are modules of their own there.
lab_packages = $(shell cd lab && go list ./... | grep -v /e2e)

.PHONY: build
build: ## bin/causeway
	go build -trimpath -buildvcs=false -ldflags '$(ldflags)' -o bin/causeway ./cmd/causeway

.PHONY: lab
lab: ## bin/lab, which makes and breaks clusters
	cd lab && go build -o ../bin/lab ./cmd/lab

# The tag is a checksum of what is inside, so that a changed image is a new one.
.PHONY: image
image: build lab ## build/causeway.tar and build/shop.tar
	mkdir -p build
	go build -trimpath -buildvcs=false -ldflags '-s -w' -o build/shop ./demo/shop
	echo "causeway.dev/causeway:sha-$$(sha256sum bin/causeway | cut -c1-12)" >build/causeway.image
	bin/lab image --entrypoint /causeway --file bin/causeway:/causeway:0755 --user 64143:64143 --tag "$$(cat build/causeway.image)" --out build/causeway.tar
	bin/lab image --entrypoint /shop --file build/shop:/shop:0755 --user 65532:65532 --tag causeway.dev/shop:demo --out build/shop.tar

.PHONY: echo
echo: lab ## build/echo.tar, a server and a client for the Gateway API's conformance tests
	mkdir -p build
	cd lab && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o ../build/echo ./echo
	bin/lab image --entrypoint /usr/local/bin/server --file build/echo:/usr/local/bin/server:0755 --file build/echo:/usr/local/bin/client:0755 --user 65532:65532 --tag causeway.dev/echo:demo --out build/echo.tar

# The same command on a machine whose clock is wrong: two files are laid over it, and all else is as it was compiled.
.PHONY: ahead
ahead: image ## build/causeway-ahead.tar, ten minutes ahead, for the tests of clocks
	go build -trimpath -buildvcs=false -overlay lab/e2e/testdata/ahead/overlay.json -ldflags '$(ldflags)' -o build/causeway-ahead ./cmd/causeway
	bin/lab image --entrypoint /causeway --file build/causeway-ahead:/causeway:0755 --user 64143:64143 --tag causeway.dev/causeway:ahead --out build/causeway-ahead.tar

.PHONY: shortlived
shortlived: image ## build/causeway-shortlived.tar, whose certificates last 2 min, for the test of open connections
	hack/shortlived '$(ldflags)'

.PHONY: demo
demo: ## two clusters, linked, and a call across them
	demo/run

.PHONY: demo-down
demo-down: lab ## remove the demo's clusters
	bin/lab $${CAUSEWAY_LAB:+--name "$$CAUSEWAY_LAB"} down

.PHONY: test
test: lint unit fresh selftest e2e ## all that must be green

.PHONY: lint
lint: bin/.tools ## gofmt, vet, staticcheck, shellcheck
	hack/need shellcheck=shellcheck
	@unformatted=$$(gofmt -l $(go_files)); [ -z "$$unformatted" ] || { echo "gofmt -w these: $$unformatted" >&2; exit 1; }
	go vet -trimpath ./...
	cd lab && go vet -tags e2e ./...
	GOFLAGS=-trimpath bin/staticcheck ./...
	cd lab && ../bin/staticcheck -tags e2e ./...
	shellcheck $(scripts)
	hack/shortlived -n

.PHONY: unit
unit: export CGO_ENABLED := 1
unit: ## tests that need no cluster, with the race detector
	hack/need gcc=gcc gcc=libc6-dev promtool=prometheus
	go test -race ./...
	cd lab && go test -race $(lab_packages)

.PHONY: e2e
e2e: ahead ## tests on real clusters, in a lab of their own
	hack/e2e

# Stories that take over a minute each, and stories that have their full size only with
# CAUSEWAY_E2E_LONG. The list is a pattern of go test. Without it, the other tests of e2e
# would run, too. internal/archtest compares the list with the tests. All stories together
# take about an hour.
long_stories := TestTenThousandExports|TestRestoredFromBackup|TestRebuiltUnderItsOldName|TestAPIServerAway|TestFlippingPeer|TestLeaderCutOff|TestOpenConnectionsOutliveTheirCertificates|TestStrangersFlood|TestPodsFlood|TestHostilePeer|TestFloodsOfFrames|TestPodThatDials|TestStreamsLiveOn|TestAddressesReused|TestLargeBodies|TestRequestsSurviveALossyWAN|TestRequestsPreferSameZone|TestGatewayKilled|TestSourcePortsDoNotRunOut|TestLateLoadBalancer|TestMesh

.PHONY: test-long
test-long: ahead shortlived ## the stories on real clusters that take over a minute each
	CAUSEWAY_E2E_LONG=1 hack/e2e -timeout=4h -run '$(long_stories)'

.PHONY: mesh-tests
mesh-tests: image echo ## the Gateway API's mesh conformance tests, on mirrors
	hack/mesh-tests

.PHONY: selftest
selftest: ## the lab's tests of itself, in labs of their own
	cd lab && go test -tags e2e -count=1 -timeout=20m -v ./selftest/

.PHONY: bench
bench: ## every benchmark, once
	go test -run '^$$' -bench . -benchmem ./...

.PHONY: bench-scale
bench-scale: image ## the control plane at 10,000 mirrors, on clusters in a lab of its own
	hack/bench-scale $(SCALE)

.PHONY: bench-peers
bench-peers: image ## Causeway beside Envoy and HAProxy, on clusters in a lab of its own
	hack/bench-peers $(PEERS)

.PHONY: generate
generate: bin/.tools ## code, CRDs, docs/metrics.md and dashboards, from types, protos and collectors
	hack/need protoc=protobuf-compiler
	bin/controller-gen object paths=./api/...
	bin/controller-gen crd paths=./api/... output:crd:dir=charts/causeway/crds
	PATH="$(CURDIR)/bin:$$PATH" protoc --go_out=. --go_opt=paths=source_relative \
		--go-grpc_out=. --go-grpc_opt=paths=source_relative $$(git ls-files '*.proto')
	go run -trimpath ./internal/metricsdoc/generate docs/metrics.md
	go run -trimpath ./internal/monitoring/generate charts/causeway/files/dashboards

.PHONY: fresh
fresh: ## fail if a generated file is stale
	hack/fresh

bin/.tools: tools/go.mod tools/go.sum
	cd tools && GOBIN="$(CURDIR)/bin" go install tool
	touch $@

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.* ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.* ## /\1\t/' | expand -t 12
