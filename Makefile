# Each target installs what it needs, outside the repository: ${CACHELET_CACHE:-~/.cache/cachelet}.
# A second run finds it there. Needs Rust (rustup), Java 17, Maven, Go and Python 3.11.

.DEFAULT_GOAL := help
.PHONY: help demo demo-min test test-chart test-examples test-java test-spark test-spark-full bench bench-jvm bench-tpch simulate e2e-k8s jar image \
        spark lint lint-format lint-java lint-clippy lint-docs lint-dependencies lint-scripts soak fmt clean release-binaries s3-servers strace

# TPC-H scale factor of the demo and of bench-tpch, the Spark of both and of e2e-k8s, and the seconds for each fuzz target.
SF ?= 1
SPARK ?= 3.5
SECONDS_PER_TARGET ?= 60

# The version of the whole repository, as Cargo.toml says it.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
BIN := $(or $(CARGO_TARGET_DIR),target)/release
# Where Java tests find the programs that they start.
JAVA_PROGRAMS = $(foreach name,bin bin.dir,-Dcachelet.$(name)=$(abspath $(or $(CARGO_TARGET_DIR),target)/debug))

help: ## Show this list
	@echo "Cachelet: make <target>"
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: SF=0.1 (scale of TPC-H), SPARK=4.1 (demo, bench-tpch, e2e-k8s), KEEP=1 (leave the demo running),"
	@echo "  DELAY=0 (demo: the S3 server on loopback as it is), QUICK=1, CASE=inline (bench), UPDATE_DOCS=1 (bench-tpch), VARIANTS=1 (simulate),"
	@echo "  SECONDS_PER_TARGET=600, BUDGET=3600 (seconds), FAULT=model (soak), CACHELET_DOSE=small, CACHELET_SEED=1 (soak, test),"
	@echo "  STEP=c_ (e2e-k8s: only the steps that match)"

demo: release-binaries jar ## Read and query TPC-H through a two-node cluster in front of a real S3 server, and compare
	@scripts/s3-server install s3proxy
	@scripts/spark-env install $(SPARK)
	@$(BIN)/cachelet-demo --scale-factor $(SF) --spark $(SPARK) $(if $(filter 0,$(DELAY)),--no-delay) \
	    $(if $(filter-out 0,$(KEEP)),--keep)

demo-min: release-binaries ## The same without an S3 server: a directory is the store
	@$(BIN)/cachelet-demo --minimal $(if $(filter-out 0,$(KEEP)),--keep)

test: s3-servers strace jar spark ## Run all tests, against real processes and real S3 servers
	cargo build --workspace --bins --locked
	cargo test --workspace --locked
	mvn -q -B -f client/pom.xml -pl hadoop surefire:test $(JAVA_PROGRAMS)
	scripts/spark-unit-tests 3.5
	scripts/spark-unit-tests 4.1
	@scripts/chart-tests
	@scripts/example-tests

test-java: jar spark ## Run the Java tests alone
	cargo build --workspace --bins --locked
	mvn -q -B -f client/pom.xml -pl hadoop surefire:test $(JAVA_PROGRAMS)
	scripts/spark-unit-tests 3.5
	scripts/spark-unit-tests 4.1

test-chart: ## Run the chart's tests alone
	cargo build --locked -p cacheletd -p cachelet-locality
	@scripts/chart-tests

test-examples: ## Check the examples in docs/examples, as far as that needs no cluster
	@scripts/example-tests

image: ## Build the container image, without a container engine
	@charts/image/build

e2e-k8s: jar ## Install the chart on a real three-node cluster on this machine, and try everything (needs root)
	@PYTHONDONTWRITEBYTECODE=1 python3 -u tests/k8s/e2e.py --spark $(SPARK) $(if $(filter-out 0,$(KEEP)),--keep) $(if $(STEP),--only '$(STEP)')

bench: release-binaries ## Measure against the local file system and direct S3; writes target/bench/report.json
	@scripts/s3-server install s3proxy
	@$(BIN)/cachelet-bench $(if $(filter-out 0,$(QUICK)),--quick) $(if $(CASE),--case $(CASE))

bench-jvm: release-binaries jar ## Compare reads in the JVM with C's pread of the same bytes
	@mkdir -p target/bench-jvm
	java_home=$$(java -XshowSettings:properties -version 2>&1 | sed -n 's/ *java.home = //p'); \
	    cc -O2 -Wall -Wextra -shared -fPIC -I "$$java_home/include" -I "$$java_home/include/linux" \
	    -o target/bench-jvm/libbaseline.so tests/benches/jvm/baseline.c
	mvn -q -B -f tests/benches/jvm/pom.xml package
	@java -cp 'target/bench-jvm/classes:target/bench-jvm/dependency/*' io.cachelet.bench.Main \
	    $(BIN) target/bench-jvm/libbaseline.so $(if $(filter-out 0,$(QUICK)),1,5)

bench-tpch: release-binaries jar ## All 22 TPC-H queries, six ways in turn; writes target/bench/tpch.json
	@scripts/s3-server install s3proxy
	@scripts/spark-env install $(SPARK)
	@$(BIN)/cachelet-bench-tpch --scale-factor $(SF) --spark $(SPARK) $(if $(filter-out 0,$(UPDATE_DOCS)),--update-docs)

simulate: ## Replay traces against the eviction policy, LRU and the offline optimum, and measure what the policy costs
	cargo build --release --locked -p cacheletd --example cachelet-simulate
	@$(BIN)/examples/cachelet-simulate $(if $(filter-out 0,$(VARIANTS)),--variants)
	@$(BIN)/examples/cachelet-simulate --cost 1000000

test-spark: s3-servers jar spark ## Locality and faults on real Spark clusters, 3.5 and 4.1: what make test has of it
	cargo build --workspace --bins --locked
	cargo test --package cachelet-tests --test spark --locked -- --nocapture --test-threads 1

test-spark-full: s3-servers jar spark ## The same, every case on both releases
	cargo build --workspace --bins --locked
	CACHELET_TEST_SPARK=full cargo test --package cachelet-tests --test spark --locked -- --nocapture --test-threads 1

jar: ## Build the one jar for Spark and Hadoop, with the native library: target/jars
	@scripts/native-library
	mvn -q -B -f client/pom.xml package -DskipTests
	@mkdir -p target/jars
	@cp client/spark/target/cachelet-spark-$(VERSION).jar target/jars/
	@echo target/jars/cachelet-spark-$(VERSION).jar

lint: lint-format lint-java lint-clippy lint-docs lint-dependencies lint-scripts ## Check format, lints, docs, dependencies and scripts

lint-format:
	cargo fmt --all --check

lint-java:
	mvn -q -B -f client/pom.xml spotless:check

lint-clippy:
	cargo clippy --workspace --all-targets --locked -- -D warnings

lint-docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Advisories are left to a scheduled job: their database is a Git repository, which not every network reaches.
lint-dependencies:
	scripts/dev-tool cargo-deny --locked check bans licenses sources

lint-scripts:
	scripts/dev-tool shellcheck -x scripts/* .ci/run charts/image/build docs/examples/*.sh tests/k8s/install-tools \
	    tests/k8s/node-init tests/k8s/custom-resources tests/k8s/spark-image tests/k8s/spark-entrypoint

soak: s3-servers ## Every fault at its full dose (docs/testing.md), then fuzz every decoder, SECONDS_PER_TARGET each
	@SOAK_BUDGET=$(BUDGET) scripts/soak $(SECONDS_PER_TARGET) $(FAULT)

fmt: ## Format the code
	cargo fmt --all
	mvn -q -B -f client/pom.xml spotless:apply

clean: ## Remove what was built here (not the cache)
	cargo clean

release-binaries:
	cargo build --release --workspace --bins --locked

# A test counts the system calls of a read.
strace:
	@scripts/system-package strace

spark:
	@scripts/spark-env install 3.5
	@scripts/spark-env install 4.1

s3-servers:
	@scripts/s3-server install s3proxy
	@scripts/s3-server install versitygw
