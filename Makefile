# Each target installs what it needs, outside the repository: ${CACHELET_CACHE:-~/.cache/cachelet}.
# A second run finds it there. Needs Rust (rustup), Java 17, Maven, Go and Python 3.11.

.DEFAULT_GOAL := help
.PHONY: help demo demo-min test test-chart bench image e2e-k8s lint lint-format lint-clippy lint-docs lint-dependencies lint-scripts \
        soak fmt clean release-binaries s3-servers strace

# TPC-H scale factor of the demo's data, and the seconds for each fuzz target.
SF ?= 0.1
SECONDS_PER_TARGET ?= 60

BIN := $(or $(CARGO_TARGET_DIR),target)/release

help: ## Show this list
	@echo "Cachelet: make <target>"
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: SF=1 (scale of the demo's data), KEEP=1 (leave the demo running), QUICK=1, CASE=inline (bench)"
	@echo "  SECONDS_PER_TARGET=600 (soak), STEP=c_ (e2e-k8s: only the steps that match)"

demo: release-binaries ## Read TPC-H through a two-node cluster in front of a real S3 server, and compare
	@scripts/s3-server install s3proxy
	@$(BIN)/cachelet-demo --scale-factor $(SF) $(if $(filter-out 0,$(KEEP)),--keep)

demo-min: release-binaries ## The same without an S3 server: a directory is the store
	@$(BIN)/cachelet-demo --minimal $(if $(filter-out 0,$(KEEP)),--keep)

test: s3-servers strace ## Run all tests, against real processes and real S3 servers
	cargo build --workspace --bins --locked
	cargo test --workspace --locked
	@scripts/chart-tests

test-chart: ## Run the chart's tests alone
	cargo build --locked -p cacheletd -p cachelet-locality
	@scripts/chart-tests

image: ## Build the container image, without a container engine
	@charts/image/build

e2e-k8s: ## Install the chart on a real three-node cluster on this machine, and try everything (needs root)
	@PYTHONDONTWRITEBYTECODE=1 python3 -u tests/k8s/e2e.py $(if $(filter-out 0,$(KEEP)),--keep) $(if $(STEP),--only '$(STEP)')

bench: release-binaries ## Measure against the local file system and direct S3; writes target/bench/report.json
	@scripts/s3-server install s3proxy
	@$(BIN)/cachelet-bench $(if $(filter-out 0,$(QUICK)),--quick) $(if $(CASE),--case $(CASE))

lint: lint-format lint-clippy lint-docs lint-dependencies lint-scripts ## Check format, lints, docs, dependencies and scripts

lint-format:
	cargo fmt --all --check

lint-clippy:
	cargo clippy --workspace --all-targets --locked -- -D warnings

lint-docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Advisories are left to a scheduled job: their database is a Git repository, which not every network reaches.
lint-dependencies:
	scripts/dev-tool cargo-deny --locked check bans licenses sources

lint-scripts:
	scripts/dev-tool shellcheck -x scripts/* .ci/run charts/image/build tests/k8s/install-tools tests/k8s/node-init

soak: ## Fuzz every decoder, SECONDS_PER_TARGET each
	scripts/soak $(SECONDS_PER_TARGET)

fmt: ## Format the code
	cargo fmt --all

clean: ## Remove what was built here (not the cache)
	cargo clean

release-binaries:
	cargo build --release --workspace --bins --locked

# A test counts the system calls of a read.
strace:
	@scripts/system-package strace

s3-servers:
	@scripts/s3-server install s3proxy
	@scripts/s3-server install versitygw
