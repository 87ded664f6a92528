#!/usr/bin/env bash
# The Distributed engine over MPI on one host: the same bytes for 1 to 4 ranks, and what happens when a rank dies, differs or diverges.
set -u
program=$STQUANT_BUILD/tests/sharded_digest
if [ ! -x "$program" ] || ! command -v mpirun >/dev/null; then
    echo "ok - sharded states over MPI # SKIP built without MPI, or no mpirun"
    exit 0
fi
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
failures=0

report() { # status name
    if [ "$1" = 0 ]; then echo "ok - $2"; else echo "not ok - $2"; failures=$((failures + 1)); fi
}

launch() { # ranks mode; output and status in $output, $status
    output=$(timeout 60 mpirun --oversubscribe -n "$1" "$program" "${2:-}" 2>&1)
    status=$?
}

launch 1
reference=$(sed -n 's/^digest \([0-9a-f-]*\) .*/\1/p' <<<"$output")
total=$(sed -n 's/.*total_bytes \([0-9]*\).*/\1/p' <<<"$output")
[ "$status" = 0 ] && [ -n "$reference" ]
report $? "one rank runs"
for ranks in 2 3 4; do
    launch $ranks
    [ "$status" = 0 ] && grep -q "^digest $reference " <<<"$output"
    report $? "parameters, widths and states on $ranks ranks are those of one"
    # The model has 20 segments of up to 65,536 elements: a rank holds its share, one segment more, and its records (8 KiB).
    own=$(sed -n 's/.*most_bytes \([0-9]*\).*/\1/p' <<<"$output")
    [ -n "$own" ] && [ "$own" -le $((total / ranks + 65536 * 2 * 9 / 8 + 8192)) ]
    report $? "state bytes of every one of $ranks ranks are a share (at most $own of $total)"
    # 64 bytes a tensor, 8 a segment, 4 (rows + cols) a tensor and iteration; 7 tensors, 20 segments, rows + cols of the five
    # matrices 4836, 11 decisions.
    decisions=$(sed -n 's/.*decision_bytes \([0-9]*\).*/\1/p' <<<"$output")
    [ -n "$decisions" ] && [ "$decisions" -gt 0 ] && [ "$decisions" -le $((11 * (64 * 7 + 8 * 20 + 2 * 4 * 4836))) ]
    report $? "decisions on $ranks ranks cost $decisions bytes, within the bound"
done
launch 3 nan
[ "$status" = 0 ] && grep -q "skipped 1 " <<<"$output"
report $? "a gradient that is not finite on one rank skips the step on all"
launch 3 differ
[ "$status" != 0 ] && grep -q "Rank 1 disagrees with rank 0 about configuration" <<<"$output"
report $? "a rank with another configuration is refused at the start"
launch 3 diverge
[ "$status" != 0 ] && grep -q "Rank 1 disagrees with rank 0 about the widths decided" <<<"$output"
report $? "a rank that decides otherwise is named"
begin=$SECONDS
launch 3 die
[ "$status" != 0 ] && [ "$status" != 124 ] && [ $((SECONDS - begin)) -le 30 ]
report $? "when a rank dies the others end within 30 s"
begin=$SECONDS
launch 3 hang
[ "$status" != 0 ] && [ "$status" != 124 ] && [ $((SECONDS - begin)) -le 30 ] && grep -q "did not answer within 5 s" <<<"$output" &&
    grep -q "Rank [02] of 3" <<<"$output"
report $? "when a rank hangs the others say so after the time-out"
launch 3 nccl
[ "$status" = 0 ] && { [ "$(grep -c ": joined" <<<"$output")" = 3 ] ||
    { grep -q "^rank 0: .*\(CUDA\|NCCL\|GPU\)" <<<"$output" && [ "$(grep -c "^rank [12]: .*Rank 0 has no NCCL id" <<<"$output")" = 2 ]; }; }
report $? "NCCL over MPI's ranks: all join, or all are told why not"

# The trainer: the batch is the global one, so that losses differ from one rank's only by the order of sums.
if [ -n "${STQUANT_COMMAND:-}" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    for i in $(seq 400); do echo "Line $i of a text that says nothing new: $((i * i)) and $((i * 7919 % 1000))."; done >"$folder/text"
    options="train gpt2 --data $folder/text --layers 1 --width 32 --heads 2 --sequence-length 32 --batch 12 --steps 20 --threads 1
        --optimizer adamw --validate-every 0 --validation-batches 2 --sample-length 0"
    # shellcheck disable=SC2086 # options are meant to be split
    "$STQUANT_COMMAND" $options --log "$folder/1" >/dev/null 2>&1
    for ranks in 2 3; do
        # shellcheck disable=SC2086
        timeout 60 mpirun --oversubscribe -n $ranks "$STQUANT_COMMAND" $options --log "$folder/$ranks" >/dev/null 2>&1
        python3 - "$folder/1" "$folder/$ranks" $ranks <<'END'
import json, sys
one, many = ([json.loads(line) for line in open(path)] for path in sys.argv[1:3])
assert len(one) == len(many) == 20
for a, b in zip(one, many):
    assert abs(a["train_loss"] - b["train_loss"]) < 1e-4 and b["ranks"] == int(sys.argv[3])
    assert b["state_bytes_per_rank"] < a["state_bytes"] / b["ranks"] + 16384
assert abs(one[-1]["validation_loss"] - many[-1]["validation_loss"]) < 1e-4
END
        report $? "the trainer's losses on $ranks ranks are those of one"
    done
    # shellcheck disable=SC2086
    output=$(timeout 60 mpirun --oversubscribe -n 5 "$STQUANT_COMMAND" $options 2>&1)
    [ $? = 2 ] && grep -q "make --batch a multiple of 5" <<<"$output"
    report $? "a batch that cannot be shared out is refused"
fi
[ "$failures" = 0 ]
