#!/usr/bin/env bash
# `stquant train --device cuda` without a GPU: the whole command over the emulated runtime and NCCL (tests/cuda/emulation), put
# through scripts/check-trainer-gpu. Work on the emulated GPU begins as late as the host lets it.
set -u
source=$(cd "$(dirname "$0")/../.." && pwd)
build=${STQUANT_BUILD:-$source/build}/emulated-trainer
for tool in g++ python3 pkg-config mpicc; do
    if ! command -v $tool >/dev/null; then
        echo "ok - the trainer on an emulated GPU # SKIP there is no $tool"
        exit 0
    fi
done
if ! log=$("$source/tests/cuda/emulation/build" "$build" stquant 2>&1); then
    echo "not ok - the command builds over an emulated runtime"
    tail -20 <<<"$log"
    exit 1
fi
export STQUANT_NCCL=$build/libnccl.so.2 OMP_NUM_THREADS=1 EMULATED_QUEUE=1
failures=0
"$source/scripts/check-trainer-gpu" --quick "$build/stquant" || failures=1
output=$(EMULATED_GPUS=0 "$build/stquant" train gpt2 --data "$0" --device cuda 2>&1)
if [ $? = 1 ] && grep -q "There is no GPU that CUDA can use here" <<<"$output" && [ "$(wc -l <<<"$output")" = 1 ]; then
    echo "ok - where there is no GPU the command says so"
else
    echo "not ok - where there is no GPU the command says so: $output"
    failures=1
fi
[ "$failures" = 0 ]
