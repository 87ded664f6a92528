# A thin front for CMake: `make`, `make demo`, `make check`, `make bench`. Everything is built in build/.
CMAKE ?= cmake
BUILD ?= build
JOBS ?= $(shell nproc)
# More options for CMake, for example: make CMAKE_FLAGS=-DSTQUANT_CUDA=OFF
CMAKE_FLAGS ?=

.PHONY: build demo check check-long bench install clean help dependencies

build:
	@command -v $(CMAKE) >/dev/null || { echo "cmake is not installed: run scripts/install-deps first" >&2; exit 1; }
	@mkdir -p $(BUILD)
	@$(CMAKE) -S . -B $(BUILD) -DCMAKE_BUILD_TYPE=Release $(CMAKE_FLAGS) >$(BUILD)/configure.log 2>&1 || \
	    { cat $(BUILD)/configure.log >&2; exit 1; }
	@env -u MAKEFLAGS -u MAKELEVEL $(CMAKE) --build $(BUILD) --parallel $(JOBS)

dependencies:
	@scripts/install-deps

demo: dependencies
	@scripts/demo

check: dependencies
	@$(MAKE) --no-print-directory build
	@scripts/run-tests $(BUILD)

check-long: export STQUANT_LONG = 1
check-long: check

bench: dependencies
	@$(MAKE) --no-print-directory build
	@bench/run $(BUILD)

install: build
	$(CMAKE) --install $(BUILD)

clean:
	rm -rf $(BUILD)

help:
	@echo "make             build the library and the command: $(BUILD)/stquant"
	@echo "make demo        train a small GPT-2 twice, float32 and low-bit states, and compare (4 minutes)"
	@echo "make check       all tests; ends with 'N passed, N failed'"
	@echo "make check-long  the same, with the slow variants"
	@echo "make bench       the CPU benchmarks of docs/benchmarks.md"
	@echo "make install     install library, headers, command and its manual (DESTDIR and CMAKE_FLAGS=-DCMAKE_INSTALL_PREFIX=... work)"
	@echo "make clean       remove $(BUILD)/"
