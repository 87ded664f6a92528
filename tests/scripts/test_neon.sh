#!/usr/bin/env bash
# Compiles the NEON kernels for 64-bit Arm and runs them against the table of checksums: on such a machine as they are, elsewhere
# by a cross compiler and an emulator (Debian: gcc-aarch64-linux-gnu, qemu-user).
set -eu
source=${STQUANT_SOURCE:-$(cd "$(dirname "$0")/../.." && pwd)}
if [ "$(uname -m)" = aarch64 ]; then
    compiler=${CC:-cc} emulator=
else
    compiler=aarch64-linux-gnu-gcc emulator=qemu-aarch64
    for program in $compiler $emulator; do
        if ! command -v "$program" >/dev/null; then
            echo "ok - neon # SKIP $program is not installed"
            exit 0
        fi
    done
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$source"
"$compiler" -std=gnu11 -O3 -Wall -Wextra -Werror -Wshadow -ffp-contract=off -fno-math-errno -static -Iinclude -Isrc -Itests \
    tests/arm/neon_checksums.c src/quant/arm/neon.c src/quant/reference.c src/quant/dispatch.c src/quant/quant.c src/common/cpu.c \
    src/common/status.c -lm -o "$folder/neon_checksums"
# The cases take 100 s together under an emulator.
$emulator "$folder/neon_checksums" "$source" $([ -n "${STQUANT_LONG:-}" ] && echo 1 || echo 6)
