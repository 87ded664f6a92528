#!/usr/bin/env bash
# The passes of quantization-aware training on a GPU, without a GPU: the test of tests/cuda/test_fake_quantize.c over the
# emulated runtime (tests/cuda/emulation).
set -u
source=$(cd "$(dirname "$0")/../.." && pwd)
build=${STQUANT_BUILD:-$source/build}/emulated
if ! command -v g++ >/dev/null || ! command -v python3 >/dev/null; then
    echo "ok - passes on an emulated GPU # SKIP there is no g++ or no python3"
    exit 0
fi
if ! log=$("$source/tests/cuda/emulation/build" "$build" test_fake_quantize 2>&1); then
    echo "not ok - the passes build over an emulated runtime"
    tail -20 <<<"$log"
    exit 1
fi
OMP_NUM_THREADS=1 exec "$build/test_fake_quantize" --quick
