/*
 * sharded_digest.c - run by tests/apps/test_mpi.sh under mpirun: trains a synthetic model on sharded states and prints
 * one line with a digest of parameters, widths and states, which must be the same for every number of ranks.
 *
 * Every gradient is a sum that rank 0 alone contributes to (the others add zeros), so that it is the same whatever the
 * order. Arguments: [mode], one of "" (100 steps), "die" (rank 1 ends in step 20), "hang" (it sleeps there), "differ"
 * (rank 1 has another configuration), "diverge" (rank 1's decision is tampered with), "nan" (the last rank's gradient
 * is not finite in step 5), "nccl" (no steps: NCCL over these ranks).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <stquant/comm_mpi.h>
#include <stquant/sharded.h>

#include "optim/optimizer.h"
#include "optim/sharded.h"
#include "quant/codec.h"

enum { TENSORS = 7, STEPS = 100 };

static const int64_t shapes[TENSORS][2] = {{700, 384}, {384, 1152}, {1, 1152}, {384, 384},
                                           {20, 300},  {997, 131},  {1, 3}};

static int fail(const char *where) {
    fprintf(stderr, "%s: %s\n", where, stq_last_error());
    stq_comm_mpi_abort(3);
    return 3;
}

static float noise(uint32_t seed, uint32_t index) {
    uint32_t h = stq_hash(stq_hash(seed) ^ index * 0x9e3779b9u);
    return (float)((int32_t)(h & 0xffff) + (int32_t)(h >> 16) - 65535) * (1.0f / 65536.0f);
}

static uint64_t digest_of(const stq_sharded *s, const float *parameters, int64_t length) {
    uint64_t digest = 0;
    for (int64_t i = 0; i < length; i++)
        digest = (digest ^ stq_float_bits(parameters[i])) * UINT64_C(0x9e3779b97f4a7c15);
    for (size_t i = 0; i < TENSORS; i++)
        digest = (digest ^ (uint64_t)s->adamw->targets[i][0] ^ (uint64_t)s->adamw->targets[i][1] << 8) *
                 UINT64_C(0x9e3779b97f4a7c15);
    return digest;
}

/* Values of both states of all ranks with their places, in a sum whose order is free. */
static stq_status digest_states(stq_sharded *s, stq_comm *comm, int64_t *digest) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < TENSORS; i++) {
        const stq_tensor *slice = &s->adamw->tensors[i];
        float *values = calloc((size_t)slice->count + 1, sizeof *values);
        stq_status status = values ? STQ_OK : STQ_OUT_OF_MEMORY;
        for (uint32_t state = 0; state < 2 && status == STQ_OK && slice->count > 0; state++) {
            status = stq_adamw_read_state(s->adamw, i, (stq_state)state, values, slice->first, slice->count);
            for (int64_t k = 0; k < slice->count; k++) {
                uint32_t place = stq_hash(stq_hash(2 * i + state) ^ (uint32_t)(slice->first + k));
                sum += (uint64_t)stq_hash(place ^ stq_float_bits(values[k])) * UINT64_C(0x9e3779b97f4a7c15);
            }
        }
        free(values);
        if (status != STQ_OK)
            return status;
    }
    *digest = (int64_t)sum;
    return stq_comm_all_reduce(comm, digest, 1, STQ_COMM_INT64, STQ_COMM_SUM, "the digest of the states");
}

/* The gradient is noise in multiples of a quantum; each rank but 0 contributes noise of its own, rank 0 the rest. */
static void fill_gradients(float *gradients, const int64_t *offsets, uint32_t t, int rank, int ranks) {
    for (uint32_t i = 0; i < TENSORS; i++)
        for (int64_t k = 0; k < shapes[i][0] * shapes[i][1]; k++) {
            float quantum = ldexpf(1e-3f, (int)(k / shapes[i][1] % 5) - (int)i);
            float part = rintf(512.0f * noise(t * 64 + i, (uint32_t)k));
            for (int r = 1; r < ranks && rank == 0; r++)
                part -= rintf(512.0f * noise(t * 64 + i + 1000003u * (uint32_t)r, (uint32_t)k));
            if (rank > 0)
                part = rintf(512.0f * noise(t * 64 + i + 1000003u * (uint32_t)rank, (uint32_t)k));
            gradients[offsets[i] + k] = part * ldexpf(1.0f, ilogbf(quantum) - 9);
        }
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    stq_comm *comm;
    if (stq_comm_create_mpi(&comm, 5) != STQ_OK)
        return fail("create");
    int rank = stq_comm_rank(comm);
    if (strcmp(mode, "nccl") == 0) {
        stq_comm *over;
        stq_status status = stq_comm_create_nccl_over(&over, comm, NULL, 5);
        printf("rank %d: %s: %s\n", rank, stq_status_name(status), status == STQ_OK ? "joined" : stq_last_error());
        stq_comm_destroy(over);
        stq_comm_destroy(comm);
        return 0;
    }
    char names[TENSORS][16];
    stq_tensor tensors[TENSORS];
    int64_t offsets[TENSORS], length = 0;
    for (int i = 0; i < TENSORS; i++) {
        snprintf(names[i], sizeof names[i], "tensor %d", i);
        tensors[i] = stq_tensor_whole(names[i], shapes[i][0], shapes[i][1]);
        offsets[i] = length;
        length += (tensors[i].count + 15) / 16 * 16;
    }
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.decide_every = 10;
    config.policy.planned_steps = STEPS;
    config.policy.state_bits = 4.5;
    config.policy.kind = STQ_POLICY_ZONES;
    config.seed = strcmp(mode, "differ") == 0 && rank == 1 ? 2 : 1;
    stq_sharded *s;
    if (stq_sharded_create(&s, comm, &config, tensors, TENSORS, &(stq_flat){.offsets = offsets, .length = length}) !=
        STQ_OK)
        return fail("sharded");
    float *parameters = calloc((size_t)length, sizeof *parameters),
          *gradients = calloc((size_t)length, sizeof *gradients);
    for (int64_t i = 0; i < length; i++)
        parameters[i] = 0.02f * noise(7, (uint32_t)i);
    for (uint32_t t = 1; t <= STEPS; t++) {
        if (strcmp(mode, "die") == 0 && rank == 1 && t == 20)
            _Exit(9);
        if (strcmp(mode, "hang") == 0 && rank == 1 && t == 20)
            sleep(60);
        if (strcmp(mode, "diverge") == 0 && rank == 1 && t == 10)
            s->adamw->policy.config.state_bits = 3.0, s->adamw->policy.cap_bytes = s->adamw->policy.cap_bytes * 3 / 4;
        fill_gradients(gradients, offsets, t, rank, stq_comm_ranks(comm));
        if (strcmp(mode, "nan") == 0 && t == 5 && rank == stq_comm_ranks(comm) - 1)
            gradients[offsets[5] + 3] = NAN;
        /* Two buckets begun early, the rest in the step. */
        if (stq_sharded_start(s, gradients, offsets[3], 100000) != STQ_OK ||
            stq_sharded_start(s, gradients, offsets[1], 65536 * 3 + 5) != STQ_OK)
            return fail("start");
        if (stq_sharded_step(s, parameters, gradients, 1.0, NULL) != STQ_OK)
            return fail("step");
    }
    stq_memory memory;
    uint64_t total;
    stq_adamw_memory(s->adamw, &memory);
    int64_t most = (int64_t)memory.state_bytes, states = 0;
    uint64_t decision_bytes = stq_comm_decision_bytes(comm);
    if (stq_sharded_total_bytes(s, &total) != STQ_OK ||
        stq_comm_all_reduce(comm, &most, 1, STQ_COMM_INT64, STQ_COMM_MAX, "the state bytes") != STQ_OK ||
        digest_states(s, comm, &states) != STQ_OK)
        return fail("bytes");
    if (rank == 0)
        printf("digest %016llx-%016llx skipped %lld ranks %d most_bytes %lld total_bytes %llu decision_bytes %llu\n",
               (unsigned long long)digest_of(s, parameters, length), (unsigned long long)states,
               (long long)stq_adamw_skipped_count(s->adamw), stq_comm_ranks(comm), (long long)most,
               (unsigned long long)total, (unsigned long long)decision_bytes);
    free(parameters);
    free(gradients);
    stq_sharded_destroy(s);
    stq_comm_destroy(comm);
    return 0;
}
