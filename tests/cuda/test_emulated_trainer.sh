#!/usr/bin/env bash
# `stquant train --device cuda` without a GPU: the whole command over the emulated runtime and NCCL (tests/cuda/emulation), put
# through scripts/check-trainer-gpu. Work on the emulated GPU begins as late as the host lets it.
set -u
source=$(cd "$(dirname "$0")/../.." && pwd)
build=${STQUANT_BUILD:-$source/build}/emulated
for tool in g++ python3 pkg-config mpicc; do
    if ! command -v $tool >/dev/null; then
        echo "ok - the trainer on an emulated GPU # SKIP there is no $tool"
        exit 0
    fi
done
if ! pkg-config --exists jansson libpcre2-8 || ! gcc -E -include dnnl.h -x c /dev/null >/dev/null 2>&1; then
    echo "ok - the trainer on an emulated GPU # SKIP the command's libraries are not there"
    exit 0
fi
if ! log=$("$source/tests/cuda/emulation/build" "$build" stquant 2>&1); then
    echo "not ok - the command builds over an emulated runtime"
    tail -20 <<<"$log"
    exit 1
fi
export STQUANT_NCCL=$build/libnccl.so.2 OMP_NUM_THREADS=1 EMULATED_QUEUE=1
failures=0
"$source/scripts/check-trainer-gpu" --quick "$build/stquant" || failures=1

refused() { # name sentence option...: status 1 and one line
    local name=$1 sentence=$2 output
    shift 2
    output=$("$build/stquant" train gpt2 --data "$0" --device cuda "$@" 2>&1)
    if [ $? = 1 ] && grep -q "$sentence" <<<"$output" && [ "$(wc -l <<<"$output")" = 1 ]; then
        echo "ok - $name"
    else
        echo "not ok - $name: $output"
        failures=1
    fi
}
EMULATED_GPUS=0 refused "where there is no GPU the command says so" "There is no GPU that CUDA can use here"
refused "a model that the GPU has no memory for is refused" "GiB on the GPU (emulated GPU), where 2.0 GiB are free" --preset 774m --batch 1
[ "$failures" = 0 ]
