/*
 * gpu_sharded_check.c - sharded steps on all ranks, on one rank, and steps of a plain optimizer, given the same
 * gradients: the digests of parameters, states, widths and factors must be the same.
 */
#include <string.h>
#include <unistd.h>

#include "gpu_sharded.h"
#include "quant/codec.h"

enum { STEPS = 34, SKIPPED_STEP = 7, MOST_BUFFERS = 256 };

static const uint16_t not_a_number = 0x7fc0;

/* What a run leaves behind. */
typedef struct outcome {
    uint64_t parameters, states, decisions;
    uint64_t state_bytes, total_bytes, decision_bytes;
    int64_t steps, skipped;
} outcome;

/* Ends inside segments and blocks, tensors smaller than the number of ranks, 1-D ones, one of two segments and a bit.
 */
static void add_tensors(model *m, bool small) {
    const int64_t shapes[][2] = {{1, 3},
                                 {small ? 70 : 257, 1031},
                                 {1, 4800},
                                 {small ? 9 : 2000, 640},
                                 {64, 64},
                                 {1, 7},
                                 {small ? 3 : 333, 1999},
                                 {small ? 10 : 1500, 1024},
                                 {1, 1}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        model_add(m, shapes[i][0], shapes[i][1]);
}

static stq_adamw_config configuration(void) {
    stq_adamw_config config = stq_adamw_defaults();
    config.device = STQ_DEVICE_CUDA;
    config.policy.kind = STQ_POLICY_ZONES;
    config.policy.state_bits = 5.5;
    config.policy.decide_every = 11;
    config.policy.planned_steps = STEPS;
    config.seed = 3;
    int device = 0;
    if (cudaGetDevice(&device) == cudaSuccess)
        config.device_index = device;
    return config;
}

/* Shares first to first + count - 1 of the gradient of a step; in one step the last share is not finite. */
static bool draw(job *j, const model *m, void *gradients, int step, int first, int count) {
    for (size_t i = 0; i < m->count; i++)
        TRY_CUDA(gpu_random_shares((uint16_t *)gradients + m->offsets[i], m->tensors[i].count, true,
                                   1.0f / (float)(1 << (10 + i % 5)), (uint32_t)(step * 64 + (int)i), (uint32_t)first,
                                   (uint32_t)count, j->stream));
    if (step == SKIPPED_STEP && first + count == j->ranks)
        TRY_CUDA(cudaMemcpyAsync((uint16_t *)gradients + m->offsets[1] + 5, &not_a_number, sizeof not_a_number,
                                 cudaMemcpyHostToDevice, j->stream));
    return true;
}

static bool read_digest(job *j, const uint64_t *device, uint64_t *digest) {
    TRY_CUDA(cudaMemcpyAsync(digest, device, sizeof *digest, cudaMemcpyDeviceToHost, j->stream));
    TRY_CUDA(cudaStreamSynchronize(j->stream));
    return true;
}

/* Units of two bytes of a buffer in front of element `first` of its tensor. */
static int64_t units_before(const stq_buffer *buffer, uint32_t bits, int64_t first) {
    if (buffer->part == STQ_PART_VALUES)
        return first * 2;
    if (buffer->part == STQ_PART_SCALES)
        return first / STQ_BLOCK;
    uint32_t plane = buffer->part == STQ_PART_BASE ? 0 : (uint32_t)(buffer->part - STQ_PART_BIT0) + 1;
    return (int64_t)stq_plane_bytes(first, bits, plane) / 2;
}

/* Adds the digest of the states that an optimizer holds, elements firsts[i] onwards of tensor i. */
static bool digest_states(job *j, const stq_adamw *optimizer, const int64_t *firsts, uint64_t *device) {
    stq_buffer buffers[MOST_BUFFERS];
    size_t count;
    TRY(stq_adamw_buffers(optimizer, buffers, MOST_BUFFERS, &count));
    for (size_t i = 0; i < count && i < MOST_BUFFERS; i++) {
        stq_tensor_info info;
        TRY(stq_adamw_tensor(optimizer, buffers[i].index, &info));
        uint32_t bits = buffers[i].state == STQ_FIRST_MOMENT ? info.m_bits : info.v_bits;
        TRY_CUDA(gpu_digest(
            buffers[i].data, (int64_t)(buffers[i].bytes / 2), units_before(&buffers[i], bits, firsts[buffers[i].index]),
            (uint32_t)(buffers[i].index * 64 + buffers[i].state * 16 + (size_t)buffers[i].part), device, j->stream));
    }
    return count <= MOST_BUFFERS;
}

static uint64_t mix(uint64_t digest, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    digest = (digest ^ bits) * UINT64_C(0x9e3779b97f4a7c15);
    return digest ^ digest >> 32;
}

/* Widths, and the factors behind them. */
static bool digest_decisions(const stq_adamw *optimizer, size_t count, uint64_t *digest) {
    *digest = 0;
    for (size_t i = 0; i < count; i++) {
        stq_tensor_info info;
        TRY(stq_adamw_tensor(optimizer, i, &info));
        const double numbers[] = {info.m_bits,
                                  info.v_bits,
                                  info.zone,
                                  info.factors.n,
                                  info.factors.r,
                                  info.factors.sharpness,
                                  info.factors.kurtosis,
                                  info.factors.near_zero,
                                  info.factors.volatility};
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
            *digest = mix(*digest, numbers[k]);
    }
    return true;
}

static bool digest_parameters(job *j, const model *m, const void *parameters, uint64_t *device) {
    for (size_t i = 0; i < m->count; i++)
        TRY_CUDA(gpu_digest((const uint16_t *)parameters + m->offsets[i], m->tensors[i].count, 0, (uint32_t)i, device,
                            j->stream));
    return true;
}

/* Two digests on the device, zeroed, and the flat buffers of one run. */
typedef struct arrays {
    uint16_t *parameters, *gradients;
    uint64_t *digests;
} arrays;

static void free_arrays(arrays *a) {
    (void)cudaFree(a->parameters);
    (void)cudaFree(a->gradients);
    (void)cudaFree(a->digests);
}

static bool open_arrays(job *j, const model *m, arrays *a) {
    TRY_CUDA(cudaMalloc((void **)&a->parameters, (size_t)m->length * 2));
    TRY_CUDA(cudaMalloc((void **)&a->gradients, (size_t)m->length * 2));
    TRY_CUDA(cudaMalloc((void **)&a->digests, 2 * sizeof *a->digests));
    TRY_CUDA(cudaMemsetAsync(a->digests, 0, 2 * sizeof *a->digests, j->stream));
    TRY_CUDA(cudaMemsetAsync(a->gradients, 0, (size_t)m->length * 2, j->stream));
    TRY_CUDA(gpu_random_normal(a->parameters, m->length, true, 0.02f, 5, j->stream));
    return true;
}

static bool finish(job *j, const model *m, const arrays *a, const stq_adamw *optimizer, const int64_t *firsts,
                   outcome *o) {
    stq_memory memory;
    if (!digest_parameters(j, m, a->parameters, &a->digests[0]) ||
        !digest_states(j, optimizer, firsts, &a->digests[1]) || !read_digest(j, &a->digests[0], &o->parameters) ||
        !read_digest(j, &a->digests[1], &o->states) || !digest_decisions(optimizer, m->count, &o->decisions))
        return false;
    TRY(stq_adamw_memory(optimizer, &memory));
    o->state_bytes = o->total_bytes = memory.state_bytes;
    o->steps = stq_adamw_step_count(optimizer);
    o->skipped = stq_adamw_skipped_count(optimizer);
    return true;
}

static bool sharded_steps(job *j, const model *m, stq_comm *comm, stq_sharded *sharded, const arrays *a) {
    bool alone = stq_comm_ranks(comm) == 1;
    int64_t bucket = m->offsets[3];
    for (int step = 1; step <= STEPS; step++) {
        stq_step_result result;
        if (!draw(j, m, a->gradients, step, alone ? 0 : j->rank, alone ? j->ranks : 1))
            return false;
        /* The last tensors' gradients are there first; the step sums the others. */
        TRY(stq_sharded_start(sharded, a->gradients, bucket, m->length - bucket));
        TRY(stq_sharded_step(sharded, a->parameters, a->gradients, 1.0, step % 4 == 0 ? &result : NULL));
    }
    return true;
}

static bool run_sharded(job *j, const model *m, stq_comm *comm, arrays *a, stq_sharded **sharded, outcome *o) {
    stq_adamw_config config = configuration();
    int64_t firsts[16], cut, owned;
    if (!open_arrays(j, m, a))
        return false;
    TRY(stq_sharded_create(sharded, comm, &config, m->tensors, m->count,
                           &(stq_flat){.offsets = m->offsets, .length = m->length}));
    TRY(stq_sharded_set_stream(*sharded, j->stream));
    if (!sharded_steps(j, m, comm, *sharded, a))
        return false;
    TRY(stq_comm_finish(comm, "the steps"));
    stq_sharded_range(*sharded, stq_comm_rank(comm), &cut, &owned);
    for (size_t i = 0; i < m->count; i++)
        firsts[i] = cut > m->offsets[i] ? cut - m->offsets[i] : 0;
    if (!finish(j, m, a, stq_sharded_optimizer(*sharded), firsts, o))
        return false;
    TRY(stq_comm_all_reduce(comm, &o->states, 1, STQ_COMM_INT64, STQ_COMM_SUM, "the digests of states"));
    TRY(stq_sharded_total_bytes(*sharded, &o->total_bytes));
    o->decision_bytes = stq_comm_decision_bytes(comm);
    return true;
}

static bool run_plain(job *j, const model *m, arrays *a, stq_adamw **optimizer, outcome *o) {
    stq_adamw_config config = configuration();
    const int64_t firsts[16] = {0};
    void *parameters[16];
    const void *gradients[16];
    if (!open_arrays(j, m, a))
        return false;
    for (size_t i = 0; i < m->count; i++) {
        parameters[i] = a->parameters + m->offsets[i];
        gradients[i] = a->gradients + m->offsets[i];
    }
    TRY(stq_adamw_create(optimizer, &config, m->tensors, m->count));
    TRY_CUDA(cudaDeviceSynchronize());
    for (int step = 1; step <= STEPS; step++) {
        if (!draw(j, m, a->gradients, step, 0, j->ranks))
            return false;
        TRY(stq_adamw_step(*optimizer,
                           &(stq_step){.size = sizeof(stq_step),
                                       .parameters = parameters,
                                       .gradients = gradients,
                                       .unscale = 1,
                                       .max_gradient_norm = 1.0,
                                       .stream = j->stream},
                           NULL));
    }
    return finish(j, m, a, *optimizer, firsts, o);
}

static void print_outcome(const char *what, const outcome *o) {
    printf(
        "check: %-22s parameters %016llx states %016llx decisions %016llx, %lld steps and %lld skipped, %llu of %llu "
        "state bytes, %llu bytes for decisions\n",
        what, (unsigned long long)o->parameters, (unsigned long long)o->states, (unsigned long long)o->decisions,
        (long long)o->steps, (long long)o->skipped, (unsigned long long)o->state_bytes,
        (unsigned long long)o->total_bytes, (unsigned long long)o->decision_bytes);
    fflush(stdout);
}

static bool same(const outcome *a, const outcome *b) {
    return a->parameters == b->parameters && a->states == b->states && a->decisions == b->decisions &&
           a->steps == b->steps && a->skipped == b->skipped;
}

static bool try_sharded(job *j, const model *m, stq_comm *comm, outcome *o) {
    arrays a = {0};
    stq_sharded *sharded = NULL;
    bool done = run_sharded(j, m, comm, &a, &sharded, o);
    stq_sharded_destroy(sharded);
    free_arrays(&a);
    return done;
}

static bool try_plain(job *j, const model *m, outcome *o) {
    arrays a = {0};
    stq_adamw *optimizer = NULL;
    bool done = run_plain(j, m, &a, &optimizer, o);
    stq_adamw_destroy(optimizer);
    free_arrays(&a);
    return done;
}

/* 1 if every rank says so. */
static bool all_ranks(job *j, bool mine) {
    int32_t flag = mine;
    TRY(stq_comm_all_reduce(j->comm, &flag, 1, STQ_COMM_INT32, STQ_COMM_MIN, "the verdict"));
    return flag == 1;
}

bool check_equality(job *j, bool small) {
    model m = {0};
    outcome all = {0}, one = {0}, plain = {0};
    add_tensors(&m, small);
    bool done = try_sharded(j, &m, j->comm, &all);
    done = try_sharded(j, &m, j->self, &one) && done;
    done = try_plain(j, &m, &plain) && done;
    model_free(&m);
    bool equal = done && same(&all, &one) && same(&one, &plain) && all.skipped == 1;
    if (j->rank == 0 || !equal) {
        char what[32];
        snprintf(what, sizeof what, "rank %d of %d", j->rank, j->ranks);
        print_outcome(what, &all);
        print_outcome("one rank", &one);
        print_outcome("a plain optimizer", &plain);
    }
    equal = all_ranks(j, equal);
    if (j->rank == 0)
        printf(
            "check: %s: parameters, states, widths and factors of %d ranks, of one and of a plain optimizer are %s\n",
            equal ? "PASSED" : "FAILED", j->ranks, equal ? "the same" : "NOT the same");
    fflush(stdout);
    return equal;
}

/* Steps until one fails; the last rank leaves in the third. */
static bool steps_until_failure(job *j, const model *m, const arrays *a, stq_sharded *sharded) {
    for (int step = 1; step <= 12; step++) {
        stq_step_result result;
        if (step == 3 && j->rank == j->ranks - 1)
            _exit(9);
        if (!draw(j, m, a->gradients, step, j->rank, 1))
            return false;
        stq_status status = stq_sharded_step(sharded, a->parameters, a->gradients, 1.0, &result);
        if (status != STQ_OK) {
            printf("death: rank %d in step %d: %s: %s\n", j->rank, step, stq_status_name(status), stq_last_error());
            fflush(stdout);
            return status == STQ_COMMUNICATION && step == 3;
        }
    }
    return false;
}

bool check_death(job *j, bool small) {
    model m = {0};
    arrays a = {0};
    stq_sharded *sharded = NULL;
    stq_adamw_config config = configuration();
    add_tensors(&m, small);
    if (!open_arrays(j, &m, &a))
        return false;
    TRY(stq_sharded_create(&sharded, j->comm, &config, m.tensors, m.count,
                           &(stq_flat){.offsets = m.offsets, .length = m.length}));
    TRY(stq_sharded_set_stream(sharded, j->stream));
    bool noticed = steps_until_failure(j, &m, &a, sharded);
    printf("death: %s\n", noticed ? "PASSED" : "FAILED");
    fflush(stdout);
    return noticed; /* nothing is freed: the process ends */
}
