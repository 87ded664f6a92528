#!/usr/bin/env bash
# Whole optimizers and sharded steps on GPUs, without GPUs: tests/cuda/test_optimizer.c, bench/gpu_sharded.c, the backend's
# kernels and the transport over NCCL run on a CPU (tests/cuda/emulation), a process a rank.
set -u
source=$(cd "$(dirname "$0")/../.." && pwd)
build=${STQUANT_BUILD:-$source/build}/emulated
failures=0

report() { # status name
    if [ "$1" = 0 ]; then echo "ok - $2"; else echo "not ok - $2"; failures=$((failures + 1)); fi
}

if ! command -v g++ >/dev/null || ! command -v python3 >/dev/null; then
    echo "ok - sharded steps over an emulated NCCL # SKIP there is no g++ or no python3"
    exit 0
fi
log=$("$source/tests/cuda/emulation/build" "$build" gpu_sharded test_optimizer test_factors 2>&1)
report $? "the GPU backend builds over an emulated runtime"
[ "$failures" = 0 ] || { echo "$log" | tail -20; exit 1; }
export STQUANT_NCCL=$build/libnccl.so.2 OMP_NUM_THREADS=1
# The longer half of the runs goes on beside all else: it takes one processor.
EMULATED_QUEUE=1 "$build/test_optimizer" decisions >"$build/decisions.log" 2>&1 &
decisions=$!
output=$(EMULATED_QUEUE=1 "$build/test_optimizer" -decisions 2>&1)
report $? "whole optimizers: the bytes of the CPU, with work that begins as late as the host lets it"
sed 's/^/# /' <<<"$output"
output=$("$build/test_factors" 2>&1)
report $? "factors of all shapes and types: the bytes of the CPU"
sed 's/^/# /' <<<"$output"
for ranks in 2 3; do
    output=$("$build/gpu_sharded" --ranks $ranks --check --quick --deadline 240 2>&1)
    report $? "parameters, states, widths and factors on $ranks ranks are those of one rank and of a plain optimizer"
    sed 's/^/# /' <<<"$output"
done
# States: the share, at most half a segment's more, and what every rank has: 9 tensors' records.
total=$(sed -n 's/.*one rank .* \([0-9]*\) of [0-9]* state bytes.*/\1/p' <<<"$output")
own=$(sed -n 's/.*rank 0 of 3 .* \([0-9]*\) of [0-9]* state bytes.*/\1/p' <<<"$output")
[ -n "$own" ] && [ -n "$total" ] && [ "$own" -le $((total / 3 + 65536 * 5 / 4 + 32768)) ]
report $? "rank 0 of 3 holds a share of the states (${own:-?} of ${total:-?})"
output=$("$build/gpu_sharded" --ranks 2 --bench --width 32 --layers 1 --csv "$build/times.csv" 2>&1)
report $? "the pieces of a step are timed, and parameters agree afterwards"
output=$("$build/gpu_sharded" --ranks 2 --die --quick --deadline 60 2>&1) && grep -q "death: PASSED" <<<"$output"
report $? "a rank that dies is noticed by the other"
wait "$decisions"
report $? "whole optimizers with decisions: the bytes of the CPU"
sed 's/^/# /' "$build/decisions.log"
[ "$failures" = 0 ]
