# Every target can be run twice, as root or not, from any directory (make -C DIR TARGET). What they mean stands
# behind the ##: `make help` prints it.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  = -X dozo/internal/version.release=$(VERSION)
GO      ?= go
BIN      = $(CURDIR)/bin/dozo
# A checkout of another user's has no revision that git would tell.
VCS      = $(shell git rev-parse HEAD >/dev/null 2>&1 && echo true || echo false)
# Where `make up` keeps its system.
DIR     ?= $(CURDIR)/dozo-data
UPFLAGS ?=
# Rounds of the long crash test, seconds for each fuzz target.
ROUNDS   ?= 100
VOLUMES  ?= 1000
FUZZTIME ?= 30s
# Seeds of the simulator, further flags of internal/sim/batch, mutants.
SEEDS    ?= 1000
SEED     ?= 1
SIMFLAGS ?=
MUTANTS  ?= all
# Rounds of each kind of the migration demo.
DEMO_ROUNDS ?= 5
# Further flags of go test in unit and e2e.
TESTFLAGS ?=

export DOZO_BIN = $(BIN)

.DEFAULT_GOAL := help
.PHONY: help build up down test deps unit e2e image-test crash-test robust many many-in-use upgrade-test conformance sim sim-short mutants sim-mutants lab-test guest-test demo-migration bench-iscsi bench-growth lint fuzz generate clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/dozo
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=$(VCS) -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/dozo

up: build ## build, and run three sites of two nodes on this machine, with data in DIR (default ./dozo-data)
	@# 4: conflict. If that is because all of it runs already, it is what was wanted.
	@$(BIN) up --detach --dir '$(DIR)' $(UPFLAGS) || { status=$$?; [ $$status = 4 ] && $(BIN) node list --dir '$(DIR)' || exit $$status; }

down: build ## stop what `make up` has started; the data stay
	$(BIN) down --dir '$(DIR)'

test: deps unit sim-short e2e ## everything that CI wants: installs what is missing (Debian, root), unit tests, end-to-end tests

deps: ## install the Debian packages that the end-to-end tests and the benchmark use (only those missing)
	./test/deps.sh

unit: ## go test ./... : no root, no packages, no network but loopback
	$(GO) test $(TESTFLAGS) ./...

e2e: build ## end-to-end tests with real processes, qemu and libiscsi (short forms; see docs/testing.md)
	./test/e2e.sh -timeout 60m $(TESTFLAGS)

image-test: build ## long form of the image test, with a Debian root from debootstrap (root, network)
	E2E_LONG=1 ./test/e2e.sh -timeout 60m -run 'TestImage' $(TESTFLAGS)

crash-test: build ## ROUNDS=100 rounds of kill -9 under a checking writer, replicas dropped after replication, and voters on a full disk (root)
	E2E_LONG=1 E2E_ROUNDS=$(ROUNDS) ./test/e2e.sh -timeout 6h -run 'TestCrash|TestLocalReplicaDropped|TestVoterWithAFullDisk' $(TESTFLAGS)

robust: build ## ROUNDS=100 rounds of faults at random among real processes in namespaces, with a check of what clients saw (root)
	./test/robust.sh $(ROUNDS)

many: build ## VOLUMES=1000 volumes on three sites of two nodes: what they cost, and what happens when a node dies; ends above 8 GB of disk
	E2E_MANY=$(VOLUMES) ./test/e2e.sh -timeout 6h -v -run TestVolumesAtThreeSites $(TESTFLAGS)

many-in-use: build ## VOLUMES=1000 volumes that were just written, all owned by one node of three, which dies: how long until all are served, and what that costs
	E2E_IN_USE=$(VOLUMES) ./test/e2e.sh -timeout 6h -v -run TestKillWithManyInUse $(TESTFLAGS)

upgrade-test: build ## build the previous version (FROM=REVISION) and upgrade a cluster from it, node by node, under I/O
	./test/upgrade.sh $(FROM)

lab-test: build ## the lab against ping, iperf3 and captures (root; network namespaces, /dev/net/tun)
	./test/deps.sh
	DOZO_BIN=$(BIN) $(GO) test -count=1 -tags e2e $(TESTFLAGS) ./internal/lab/...

guest-test: build ## booted guests: kernel initiator with multipath, live migration (root; builds an image of Debian packages)
	./test/deps.sh
	./test/guest-image.sh
	DOZO_BIN=$(BIN) $(GO) test -count=1 -tags e2e -timeout 40m -v $(TESTFLAGS) ./internal/guest/...

sim: ## SEEDS=n seeds of the simulator from SEED=first, which replay exactly; with TRACE=file one seed and what happened
	nice $(GO) run ./internal/sim/batch -first $(SEED) -seeds $(SEEDS) $(if $(TRACE),-trace '$(TRACE)') $(SIMFLAGS)

sim-short: ## what make test runs of the simulator: 1,000 seeds of all foci, or as many as begin within 150 s on a slow machine, three of them twice
	$(GO) run ./internal/sim/batch -spread -first 0 -seeds 1000 -limit 150s -replay 3

mutants: ## every clause of the rules left out, one at a time: its scripted scenarios must fail (MUTANTS=names)
	MUTANTS='$(MUTANTS)' nice $(GO) test -count=1 -tags mutants -timeout 15m -v -run TestScenariosFail ./internal/mutant

sim-mutants: ## leave each clause of the rules out, one at a time: the simulator must notice (MUTANTS=names)
	nice $(GO) run ./internal/sim/batch -mutants '$(MUTANTS)' -first $(SEED) $(SIMFLAGS)

demo-migration: build ## live migration with the disk behind dozo, at 18 and 100 ms: report and plot in ./demo-migration (root; 40 minutes; DEMO_ROUNDS=5)
	./test/deps.sh
	./test/guest-image.sh
	ROUNDS='$(DEMO_ROUNDS)' ./test/demo/migration.sh -o '$(CURDIR)/demo-migration'

conformance: build ## iscsi-test-cu, test by test, into docs/conformance.md
	./test/conformance/run.sh -o docs/conformance.md

bench-iscsi: build ## compare with tgt: Markdown on standard output (OUT=FILE: there too)
	./test/bench/iscsi.sh $(if $(OUT),-o '$(OUT)')

bench-growth: build ## throughput of one site with 2 and 4 core servers, their disks held to 50 MB/s: Markdown (OUT=FILE: there too)
	./test/bench/growth.sh $(if $(OUT),-o '$(OUT)')

lint: ## gofmt, go vet, staticcheck (pinned in tools/go.mod), direction of imports
	./test/lint.sh

fuzz: ## every fuzz target for FUZZTIME=30s; the processor time is counted in test/fuzz.tsv
	./test/fuzz.sh $(FUZZTIME)

generate: ## make the API's Go code from proto/ again (needs protoc)
	./tools/generate.sh

clean: ## remove bin/; data of `make up` stay
	rm -rf bin
