# The short road to everything; `make help` lists it. The build itself is CMakePresets.json.
# Paths are relative throughout, so that a checkout in a folder with spaces in its name works.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

JOBS ?= $(shell nproc)
RANKS ?= 2

# CUDA where there is a compiler for it; `make test NVCC=` leaves it out.
NVCC ?= $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
CUDA_ARCHITECTURES ?= 80-real;90-real;90-virtual
ifneq ($(NVCC),)
  cuda_options := -DROUNDHOUSE_CUDA=ON -DCMAKE_CUDA_COMPILER="$(NVCC)" "-DCMAKE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)"
else
  cuda_options := -DROUNDHOUSE_CUDA=OFF
endif

# Warnings are errors with the compiler that CI uses. Another one may warn about more, which must not stop a user.
warnings := $(if $(filter 12,$(shell g++ -dumpversion 2>/dev/null)),,--compile-no-warning-as-error)

# Open MPI refuses root unless told twice, and its copies between processes need ptrace, which containers often forbid.
ifeq ($(shell id -u),0)
  export OMPI_ALLOW_RUN_AS_ROOT := 1
  export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif
export OMPI_MCA_btl_vader_single_copy_mechanism ?= none
mpirun := mpirun --oversubscribe --bind-to none -n $(RANKS)

.PHONY: help dependencies lint-tools configure build demo smollm2 test install ci check format-check tidy-change asan-fast asan cuda fuzz bench format tidy clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/make \1\t\2/p' Makefile | expand -t 18

dependencies:
	@scripts/install_dependencies.sh

configure: dependencies
	@said=$$(cmake --preset cpu $(warnings) $(cuda_options) 2>&1) || { echo "$$said" >&2; exit 1; }

build: configure ## the program: build/bin/roundhouse (with CUDA where there is a compiler for it)
	@cmake --build build --parallel $(JOBS) --target roundhouse

demo: build ## quantizes the bundled model on two ranks, exports it and measures it, in about a minute
	@$(mpirun) build/bin/roundhouse run configs/demo.yaml
	@echo
	@echo "runs/demo/export/    checkpoints (Hugging Face directories)"
	@echo "runs/demo/results/   perplexities, one JSON file a recipe"
	@echo "runs/demo/report/    index.html: the table and a picture"
	@echo "runs/demo/journal.jsonl   everything that happened"
	@echo "Run it again: it finds everything done. Kill it half-way and run it again: it goes on."

# Of a text and a calibration set of one's own: make smollm2 TEXT=wiki.test.raw CALIBRATION=c4.jsonl (plain text, or JSON lines with "text").
smollm2: build ## fetches SmolLM2-135M, quantizes it by every method at 4, 3 and 2 bits and measures that, in about a quarter of an hour
	@scripts/smollm2/fetch.sh build/smollm2 "$(TEXT)" "$(CALIBRATION)" || { status=$$?; [[ $$status == 3 ]] && exit 0; exit $$status; }; \
	build/bin/roundhouse run configs/smollm2.yaml --set evaluate.perplexity.0.limit=1

test: ## installs what tests need, builds everything and runs all tests
	@scripts/install_dependencies.sh --tests
	@$(MAKE) --no-print-directory configure
	@cmake --build --preset cpu --parallel $(JOBS)
	@ctest --preset cpu --output-junit Testing/results.xml || { status=$$?; scripts/failed_tests.py build/Testing/results.xml; exit $$status; }

PREFIX ?= /usr/local
install: build ## installs under PREFIX (/usr/local): bin/roundhouse, and share/roundhouse with configurations and batch scripts
	@cmake --install build --prefix "$(PREFIX)"

ci: ## what has to pass before a change goes in: formatting and all tests
	@.ci/run

check: ci ## that, and what takes longer: clang-tidy on all sources, all that the sanitizers can run, every CUDA architecture
	@$(MAKE) --no-print-directory tidy
	@$(MAKE) --no-print-directory asan
	@if [[ -n "$(NVCC)" ]]; then $(MAKE) --no-print-directory cuda; else echo "make check: no nvcc here, CUDA is not compiled"; fi

# One version of these for everybody: another one formats differently. Debian 12 and Ubuntu 24.04 have it.
CLANG_TOOLS := 14
sources := git ls-files -z '*.h' '*.cpp' '*.cu' '*.cuh'

lint-tools:
	@scripts/install_dependencies.sh --lint

format-check: lint-tools ## fails where `make format` would change something
	@$(sources) | xargs -0 clang-format-$(CLANG_TOOLS) --dry-run --Werror && echo "format-check: all sources are formatted"

BASE ?= $(shell scripts/base_of_change.sh)
tidy-change: lint-tools configure ## clang-tidy on the files that differ from BASE (where this branch left main, or the commit before), warnings are errors
	@[[ -n "$(BASE)" ]] || { echo "make tidy-change: this is no git checkout, so nothing says what changed" >&2; exit 1; }
	@scripts/tidy.sh build $(JOBS) "$(BASE)"

asan-fast: dependencies ## the sanitizers on the tests that take seconds: build/asan, without what needs several processes
	@cmake --preset asan $(warnings) >/dev/null
	@cmake --build --preset asan --parallel $(JOBS) --target fast_tests
	@ctest --preset asan-fast

asan: dependencies ## builds with address and undefined-behaviour sanitizers in build/asan and runs the tests
	cmake --workflow --preset asan

cuda: dependencies ## builds with CUDA in build/cuda and runs the tests there (skips those that need a GPU, without one)
	PATH="$$PATH:/usr/local/cuda/bin" cmake --workflow --preset cuda

FUZZ_SECONDS ?= 60
fuzz: ## installs Clang, builds the fuzzers of tests/fuzz and runs each for FUZZ_SECONDS (60); what they find is in build/fuzz/found
	@scripts/install_dependencies.sh --fuzz
	@cmake --preset fuzz -DCMAKE_CXX_COMPILER="$$(scripts/install_dependencies.sh --which-clang)" >/dev/null
	@cmake --build --preset fuzz --parallel $(JOBS)
	@failed=; for fuzzer in build/fuzz/bin/fuzz_*; do \
	  reader=$${fuzzer##*/fuzz_}; mkdir -p build/fuzz/corpus/$$reader build/fuzz/found; \
	  echo "$$reader:"; \
	  LSAN_OPTIONS=suppressions=tests/fuzz/lsan.supp:print_suppressions=0 $$fuzzer -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=2048 -max_len=65536 -verbosity=0 -print_final_stats=1 \
	    -artifact_prefix=build/fuzz/found/$$reader- build/fuzz/corpus/$$reader tests/fuzz/corpus/$$reader || failed="$$failed $$reader"; \
	done; if [[ $$failed ]]; then echo "found something:$$failed (build/fuzz/found)" >&2; exit 1; fi

bench: configure ## builds and runs the benchmarks: kernels, and whole blocks by every method that takes time
	@cmake --build build --parallel $(JOBS) --target kernels_bench block_bench
	@build/bin/kernels_bench
	@build/bin/block_bench --blocks 1
	@build/bin/block_bench --blocks 1 --samples 8 --recipe '{"method": "awq"}'
	@build/bin/block_bench --blocks 1 --samples 8 --recipe '{"method": "signround", "iterations": 5}'

format: lint-tools ## clang-format over all sources
	@$(sources) | xargs -0 clang-format-$(CLANG_TOOLS) -i

tidy: lint-tools configure ## clang-tidy on all sources, warnings are errors
	@scripts/tidy.sh build $(JOBS)

clean: ## removes build/ (never runs/)
	rm -rf build
