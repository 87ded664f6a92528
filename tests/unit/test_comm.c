/* test_comm.c - communicators: of one rank, and over callbacks that a host supplies. The ranks are threads of this
 * program, whose callbacks read each other's buffers between barriers. */
#include "testing.h"

#include <pthread.h>

enum { MOST_RANKS = 4 };

/* What the ranks of one communicator share. */
typedef struct group {
    int ranks;
    pthread_barrier_t meeting;
    void *buffers[MOST_RANKS];
    bool broken; /* all operations fail */
} group;

typedef struct member {
    group *shared;
    int rank;
} member;

static void meet(const member *m) { pthread_barrier_wait(&m->shared->meeting); }

/* Shows this rank's buffer to the others; false where the group is broken. */
static bool show_buffer(const member *m, void *buffer) {
    m->shared->buffers[m->rank] = buffer;
    meet(m);
    return !m->shared->broken;
}

static stq_status no_cable(void) { return stq_comm_failed("the cable is out."); }

#define COMBINE(T)                                                                 \
    for (int r = 0; r < ranks; r++) {                                              \
        T value = ((T *)buffers[r])[i];                                            \
        T *sum = (T *)result + i;                                                  \
        *sum = r == 0                                          ? value             \
               : operation == STQ_COMM_SUM                     ? (T)(*sum + value) \
               : (operation == STQ_COMM_MAX) == (value > *sum) ? value             \
                                                               : *sum;             \
    }

static void combine(void *result, void *const *buffers, int ranks, int64_t i, stq_comm_type type,
                    stq_comm_operation operation) {
    if (type == STQ_COMM_UINT8) {
        COMBINE(uint8_t)
    } else if (type == STQ_COMM_INT32) {
        COMBINE(int32_t)
    } else if (type == STQ_COMM_INT64) {
        COMBINE(uint64_t) /* sums wrap */
    } else if (type == STQ_COMM_FLOAT32) {
        COMBINE(float)
    } else {
        COMBINE(double)
    }
}

/* Elements first .. first + count - 1 become those of all ranks combined. */
static void combine_range(const member *m, void *buffer, int64_t first, int64_t count, int64_t total,
                          stq_comm_type type, stq_comm_operation operation) {
    size_t size = stq_comm_type_size(type);
    char *result = malloc((size_t)total * size + 1);
    for (int64_t i = first; i < first + count; i++)
        combine(result, m->shared->buffers, m->shared->ranks, i, type, operation);
    meet(m);
    memcpy((char *)buffer + (size_t)first * size, result + (size_t)first * size, (size_t)count * size);
    free(result);
    meet(m);
}

static stq_status all_reduce(void *context, void *buffer, int64_t count, stq_comm_type type,
                             stq_comm_operation operation) {
    if (!show_buffer(context, buffer))
        return no_cable();
    combine_range(context, buffer, 0, count, count, type, operation);
    return STQ_OK;
}

static int64_t sum_of(const int64_t *counts, int ranks) {
    int64_t total = 0;
    for (int r = 0; r < ranks; r++)
        total += counts[r];
    return total;
}

static stq_status reduce_scatter(void *context, void *buffer, const int64_t *counts, stq_comm_type type) {
    const member *m = context;
    if (!show_buffer(m, buffer))
        return no_cable();
    combine_range(m, buffer, sum_of(counts, m->rank), counts[m->rank], sum_of(counts, m->shared->ranks), type,
                  STQ_COMM_SUM);
    return STQ_OK;
}

static stq_status all_gather(void *context, void *buffer, const int64_t *counts, stq_comm_type type) {
    const member *m = context;
    if (!show_buffer(m, buffer))
        return no_cable();
    size_t size = stq_comm_type_size(type);
    for (int r = 0; r < m->shared->ranks; r++) {
        size_t at = (size_t)sum_of(counts, r) * size;
        if (r != m->rank)
            memcpy((char *)buffer + at, (const char *)m->shared->buffers[r] + at, (size_t)counts[r] * size);
    }
    meet(m);
    return STQ_OK;
}

static stq_status broadcast(void *context, void *buffer, int64_t count, stq_comm_type type, int root) {
    const member *m = context;
    if (!show_buffer(m, buffer))
        return no_cable();
    if (m->rank != root)
        memcpy(buffer, m->shared->buffers[root], (size_t)count * stq_comm_type_size(type));
    meet(m);
    return STQ_OK;
}

static stq_status barrier(void *context) {
    meet(context);
    return ((const member *)context)->shared->broken ? no_cable() : STQ_OK;
}

static stq_comm_transport transport_of(member *m) {
    return (stq_comm_transport){.size = sizeof(stq_comm_transport),
                                .context = m,
                                .name = "threads",
                                .rank = m->rank,
                                .ranks = m->shared->ranks,
                                .all_reduce = all_reduce,
                                .reduce_scatter = reduce_scatter,
                                .all_gather = all_gather,
                                .broadcast = broadcast,
                                .barrier = barrier};
}

/* One rank's work; what fails is noted, as an assertion may only end the main thread. */
typedef struct job {
    member member;
    void (*work)(struct job *job, stq_comm *comm);
    void *result;
    char problem[600];
} job;

#define EXPECT(job, condition)                                                                                 \
    do {                                                                                                       \
        if (!(condition) && !(job)->problem[0])                                                                \
            snprintf((job)->problem, sizeof(job)->problem, "rank %d: %s (last error: %s)", (job)->member.rank, \
                     #condition, stq_last_error());                                                            \
    } while (0)

static void *run_job(void *argument) {
    job *j = argument;
    stq_comm *comm;
    stq_comm_transport transport = transport_of(&j->member);
    if (stq_comm_create(&comm, &transport) != STQ_OK)
        abort();
    j->work(j, comm);
    stq_comm_destroy(comm);
    return NULL;
}

static void run_ranks(int ranks, bool broken, void (*work)(job *, stq_comm *), void *const *results) {
    group shared = {.ranks = ranks, .broken = broken};
    job jobs[MOST_RANKS];
    pthread_t threads[MOST_RANKS];
    pthread_barrier_init(&shared.meeting, NULL, (unsigned)ranks);
    for (int r = 0; r < ranks; r++) {
        jobs[r] = (job){.member = {&shared, r}, .work = work, .result = results ? results[r] : NULL};
        assert_int_equal(pthread_create(&threads[r], NULL, run_job, &jobs[r]), 0);
    }
    for (int r = 0; r < ranks; r++)
        pthread_join(threads[r], NULL);
    pthread_barrier_destroy(&shared.meeting);
    for (int r = 0; r < ranks; r++)
        if (jobs[r].problem[0])
            fail_msg("%s", jobs[r].problem);
}

/* ---- Operations ---- */

static void use_operations(job *j, stq_comm *comm) {
    const int rank = j->member.rank, ranks = j->member.shared->ranks;
    EXPECT(j, stq_comm_rank(comm) == rank && stq_comm_ranks(comm) == ranks);
    float sums[3] = {(float)rank, 1, -(float)rank};
    stq_comm_count(comm, true);
    EXPECT(j, stq_comm_all_reduce(comm, sums, 3, STQ_COMM_FLOAT32, STQ_COMM_SUM, "the sums") == STQ_OK);
    stq_comm_count(comm, false);
    EXPECT(j, sums[0] == (float)(ranks * (ranks - 1) / 2) && sums[1] == (float)ranks && sums[2] == -sums[0]);
    EXPECT(j, stq_comm_decision_bytes(comm) == (ranks > 1 ? sizeof sums : 0));
    int32_t low = 10 - rank, high = rank;
    EXPECT(j, stq_comm_all_reduce(comm, &low, 1, STQ_COMM_INT32, STQ_COMM_MIN, "the least") == STQ_OK);
    EXPECT(j, stq_comm_all_reduce(comm, &high, 1, STQ_COMM_INT32, STQ_COMM_MAX, "the most") == STQ_OK);
    EXPECT(j, low == 11 - ranks && high == ranks - 1);
    /* Parts of different sizes: rank r has r elements, rank 0 none. */
    int64_t counts[MOST_RANKS] = {0, 1, 2, 3}, total = sum_of(counts, ranks), own = sum_of(counts, rank);
    double parts[6], all[6] = {0};
    for (int64_t i = 0; i < total; i++)
        parts[i] = (double)(i + 10 * rank);
    EXPECT(j, stq_comm_reduce_scatter(comm, parts, counts, STQ_COMM_FLOAT64, "the parts") == STQ_OK);
    for (int64_t i = own; i < own + counts[rank]; i++)
        EXPECT(j, parts[i] == (double)(i * ranks + 5 * ranks * (ranks - 1)));
    memcpy(all + own, parts + own, (size_t)counts[rank] * sizeof *all);
    EXPECT(j, stq_comm_all_gather(comm, all, counts, STQ_COMM_FLOAT64, "the parts") == STQ_OK);
    for (int64_t i = 0; i < total; i++)
        EXPECT(j, all[i] == (double)(i * ranks + 5 * ranks * (ranks - 1)));
    /* Without start_reduce_scatter the work is done at once. */
    void *request = &request;
    EXPECT(j, stq_comm_start_reduce_scatter(comm, parts, counts, STQ_COMM_FLOAT64, &request, "the parts") == STQ_OK);
    EXPECT(j, request == NULL && stq_comm_wait(comm, request, "the parts") == STQ_OK);
    uint8_t word[4] = {(uint8_t)rank, 1, 2, 3};
    EXPECT(j, stq_comm_broadcast(comm, word, 4, STQ_COMM_UINT8, ranks - 1, "a word") == STQ_OK);
    EXPECT(j, word[0] == ranks - 1 && word[3] == 3);
    EXPECT(j, stq_comm_barrier(comm, "the end") == STQ_OK && stq_comm_finish(comm, "the end") == STQ_OK);
}

static void test_operations(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= MOST_RANKS; ranks++)
        run_ranks(ranks, false, use_operations, NULL);
}

static void test_self(void **state) {
    (void)state;
    stq_comm *comm;
    group alone = {.ranks = 1};
    job j = {.member = {&alone, 0}};
    assert_int_equal(stq_comm_create_self(&comm), STQ_OK);
    use_operations(&j, comm);
    if (j.problem[0])
        fail_msg("%s", j.problem);
    assert_int_equal(stq_comm_agree(comm, 5, "a number"), STQ_OK);
    stq_comm_destroy(comm);
    stq_comm_destroy(NULL);
}

/* ---- Failures ---- */

/* Sentences name rank, operation, data, transport and reason. */
static bool names(const char *operation, int rank) {
    char begin[160];
    snprintf(begin, sizeof begin, "Rank %d of 3: the %s of the data over threads failed: the cable is out.", rank,
             operation);
    return strcmp(stq_last_error(), begin) == 0;
}

static void use_broken(job *j, stq_comm *comm) {
    double data[3] = {0};
    int64_t counts[] = {1, 1, 1};
    int r = j->member.rank;
    EXPECT(j, stq_comm_all_reduce(comm, data, 3, STQ_COMM_FLOAT64, STQ_COMM_SUM, "the data") == STQ_COMMUNICATION &&
                  names("all-reduce", r));
    EXPECT(j, stq_comm_reduce_scatter(comm, data, counts, STQ_COMM_FLOAT64, "the data") == STQ_COMMUNICATION &&
                  names("reduce-scatter", r));
    EXPECT(j, stq_comm_all_gather(comm, data, counts, STQ_COMM_FLOAT64, "the data") == STQ_COMMUNICATION &&
                  names("all-gather", r));
    EXPECT(j, stq_comm_broadcast(comm, data, 3, STQ_COMM_FLOAT64, 1, "the data") == STQ_COMMUNICATION &&
                  names("broadcast", r));
    EXPECT(j, stq_comm_barrier(comm, "the data") == STQ_COMMUNICATION && names("barrier", r));
}

static void use_digests(job *j, stq_comm *comm) {
    EXPECT(j, stq_comm_agree(comm, 77, "the widths") == STQ_OK);
    uint64_t digest = j->member.rank == 2 ? 78 : 77;
    EXPECT(j, stq_comm_agree(comm, digest, "the widths") == STQ_COMMUNICATION &&
                  strstr(stq_last_error(), "Rank 2 disagrees with rank 0 about the widths") != NULL);
}

static void use_nccl(job *j, stq_comm *comm) {
    stq_comm *over = comm;
    stq_status status = stq_comm_create_nccl_over(&over, comm, NULL, 1);
    EXPECT(j, over == NULL);
    if (j->member.rank == 0)
        EXPECT(j, status == STQ_UNSUPPORTED && strstr(stq_last_error(), "NCCL") != NULL);
    else
        EXPECT(j, status == STQ_COMMUNICATION && strstr(stq_last_error(), "Rank 0 has no NCCL id") != NULL);
}

static void test_failures(void **state) {
    (void)state;
    run_ranks(3, true, use_broken, NULL);
    run_ranks(3, false, use_digests, NULL);
    setenv("STQUANT_NCCL", "/nowhere/libnccl.so.2", 1);
    run_ranks(3, false, use_nccl, NULL);
}

static void refuse(const stq_comm_transport *transport) {
    stq_comm *comm = (stq_comm *)(uintptr_t)1;
    assert_int_equal(stq_comm_create(&comm, transport), STQ_INVALID_ARGUMENT);
    assert_null(comm);
    assert_true(strlen(stq_last_error()) > 10);
}

static void test_refusals(void **state) {
    (void)state;
    group shared = {.ranks = 2};
    member m = {&shared, 0};
    stq_comm_transport good = transport_of(&m), bad = good;
    refuse(NULL);
    bad.size--;
    refuse(&bad);
    bad = good, bad.rank = 2;
    refuse(&bad);
    bad = good, bad.ranks = 0;
    refuse(&bad);
    bad = good, bad.barrier = NULL;
    refuse(&bad);
    bad = good, bad.wait = (stq_status(*)(void *, void *))(uintptr_t)1;
    refuse(&bad);
    stq_comm *comm;
    float value = 0;
    assert_int_equal(stq_comm_create(&comm, &good), STQ_OK);
    assert_int_equal(stq_comm_all_reduce(comm, &value, -1, STQ_COMM_FLOAT32, STQ_COMM_SUM, "x"), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_comm_all_reduce(comm, &value, 1, (stq_comm_type)99, STQ_COMM_SUM, "x"), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_comm_broadcast(comm, &value, 1, STQ_COMM_FLOAT32, 2, "x"), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_comm_all_reduce(comm, &value, 1, STQ_COMM_FLOAT32, (stq_comm_operation)3, "x"),
                     STQ_INVALID_ARGUMENT);
    void *request;
    int64_t counts[] = {1, -1};
    assert_int_equal(stq_comm_reduce_scatter(comm, &value, counts, STQ_COMM_FLOAT32, "x"), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_comm_all_gather(comm, &value, counts, STQ_COMM_FLOAT32, "x"), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_comm_start_reduce_scatter(comm, &value, counts, STQ_COMM_FLOAT32, &request, "x"),
                     STQ_INVALID_ARGUMENT);
    assert_null(request);
    stq_comm_destroy(comm);
}

/* ---- A sharded optimizer over the host's callbacks ---- */

enum { TENSORS = 4, LENGTH = 300 * 700 + 1024 + 64 * 130 + 3 };

static void fill(float *values, uint32_t seed, float scale) {
    for (uint32_t i = 0; i < LENGTH; i++)
        values[i] = scale * test_gaussian(seed, i);
}

/* Only rank 0's gradients are not zeros, so that their sum has one order. */
static void train(job *j, stq_comm *comm) {
    stq_tensor tensors[TENSORS] = {stq_tensor_whole("large", 300, 700), stq_tensor_whole("vector", 1, 1024),
                                   stq_tensor_whole("small", 64, 130), stq_tensor_whole("tiny", 1, 3)};
    int64_t offsets[TENSORS] = {0, 300 * 700, 300 * 700 + 1024, 300 * 700 + 1024 + 64 * 130};
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = STQ_POLICY_ZONES;
    config.policy.state_bits = 5.0;
    config.policy.decide_every = 5;
    config.policy.planned_steps = 25;
    config.threads = 1;
    stq_sharded *sharded;
    float *parameters = j->result, *gradients = calloc(LENGTH, sizeof *gradients);
    stq_status status = stq_sharded_create(&sharded, comm, &config, tensors, TENSORS,
                                           &(stq_flat){.offsets = offsets, .length = LENGTH});
    EXPECT(j, status == STQ_OK);
    fill(parameters, 3, 0.1f);
    for (uint32_t t = 0; status == STQ_OK && t < 25; t++) {
        memset(gradients, 0, LENGTH * sizeof *gradients);
        if (j->member.rank == 0)
            fill(gradients, 10 + t, 0.01f);
        status = stq_sharded_step(sharded, parameters, gradients, 1.0, NULL);
        EXPECT(j, status == STQ_OK);
    }
    stq_sharded_destroy(sharded);
    free(gradients);
}

static void test_sharded(void **state) {
    (void)state;
    float *one = malloc(LENGTH * sizeof *one), *many[MOST_RANKS];
    run_ranks(1, false, train, (void *[]){one});
    for (int r = 0; r < MOST_RANKS; r++)
        many[r] = malloc(LENGTH * sizeof *one);
    for (int ranks = 2; ranks <= MOST_RANKS; ranks++) {
        run_ranks(ranks, false, train, (void *const *)many);
        for (int r = 0; r < ranks; r++)
            assert_memory_equal(one, many[r], LENGTH * sizeof *one);
    }
    for (int r = 0; r < MOST_RANKS; r++)
        free(many[r]);
    free(one);
}

/* Every rank is told that rank 1 has another configuration, whatever it differs in. */
static void differ(job *j, stq_comm *comm) {
    const int64_t offsets[] = {0, 64 * 130};
    for (int what = 0; what < 4; what++) {
        stq_tensor tensors[] = {stq_tensor_whole("a", 64, 130), stq_tensor_whole("b", 64, 130)};
        stq_adamw_config config = stq_adamw_defaults();
        if (j->member.rank == 1) {
            config.policy.shared_v = what == 0 ? STQ_SHARED_AUTO : STQ_SHARED_OFF;
            tensors[1].depth = what == 1 ? 0.5f : 0;
            config.policy.state_bits = what == 2 ? 4.5 : 5.0;
        }
        stq_sharded *sharded;
        stq_status status = stq_sharded_create(&sharded, comm, &config, tensors, 2,
                                               &(stq_flat){.offsets = offsets, .length = 2 * 64 * 130});
        EXPECT(j, status == (what < 3 ? STQ_COMMUNICATION : STQ_OK));
        EXPECT(j, (sharded != NULL) == (status == STQ_OK));
        stq_sharded_destroy(sharded);
    }
}

static void test_configurations_that_differ(void **state) {
    (void)state;
    run_ranks(2, false, differ, NULL);
}

static void test_flat_layouts(void **state) {
    (void)state;
    const stq_tensor tensors[] = {stq_tensor_whole("a", 64, 130), stq_tensor_whole("b", 64, 130)};
    const struct {
        int64_t offsets[2], length;
        stq_status status;
    } cases[] = {{{0, 8320}, 16640, STQ_OK},
                 {{5, 9000}, 20000, STQ_OK},
                 {{0, 8319}, 16640, STQ_INVALID_ARGUMENT},
                 {{0, 8320}, 16639, STQ_INVALID_ARGUMENT},
                 {{-1, 8320}, 16640, STQ_INVALID_ARGUMENT},
                 {{0, INT64_MAX - 5}, 16640, STQ_INVALID_ARGUMENT},
                 {{0, 8320}, -1, STQ_INVALID_ARGUMENT}};
    stq_comm *comm;
    assert_int_equal(stq_comm_create_self(&comm), STQ_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        stq_sharded *sharded;
        stq_adamw_config config = stq_adamw_defaults();
        const stq_flat flat = {.offsets = cases[i].offsets, .length = cases[i].length};
        assert_int_equal(stq_sharded_create(&sharded, comm, &config, tensors, 2, &flat), cases[i].status);
        stq_sharded_destroy(sharded);
    }
    stq_comm_destroy(comm);
}

/* Ranges that overlap are refused with the step, and forgotten: the next one is made. */
static void test_ranges_that_overlap(void **state) {
    (void)state;
    enum { COUNT = 64 * 130 };
    static float parameters[COUNT], gradients[COUNT];
    const stq_tensor tensor = stq_tensor_whole("a", 64, 130);
    const stq_flat flat = {.offsets = (const int64_t[]){0}, .length = COUNT};
    stq_adamw_config config = stq_adamw_defaults();
    stq_comm *comm;
    stq_sharded *sharded;
    gradients[7] = 1;
    assert_int_equal(stq_comm_create_self(&comm), STQ_OK);
    assert_int_equal(stq_sharded_create(&sharded, comm, &config, &tensor, 1, &flat), STQ_OK);
    assert_int_equal(stq_sharded_start(sharded, gradients, 0, COUNT + 1), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_sharded_start(sharded, gradients, 100, 100), STQ_OK);
    assert_int_equal(stq_sharded_start(sharded, gradients, 0, 101), STQ_OK);
    assert_int_equal(stq_sharded_step(sharded, parameters, gradients, 0, NULL), STQ_INVALID_ARGUMENT);
    assert_non_null(strstr(stq_last_error(), "overlap at element 100"));
    assert_int_equal(stq_adamw_step_count(stq_sharded_optimizer(sharded)), 0);
    assert_int_equal(stq_sharded_step(sharded, parameters, gradients, 0, NULL), STQ_OK);
    assert_int_equal(stq_adamw_step_count(stq_sharded_optimizer(sharded)), 1);
    stq_sharded_destroy(sharded);
    stq_comm_destroy(comm);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_self),         cmocka_unit_test(test_operations),
        cmocka_unit_test(test_failures),     cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_sharded),      cmocka_unit_test(test_configurations_that_differ),
        cmocka_unit_test(test_flat_layouts), cmocka_unit_test(test_ranges_that_overlap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
