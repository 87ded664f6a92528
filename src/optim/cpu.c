/* cpu.c - the CPU backend: blocks shared out over threads; which thread does what changes no byte. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/float_mode.h"
#include "optim/backend.h"
#include "quant/kernels.h"
#include "quant/shared.h"
#include "score/sums.h"

static int thread_count(const stq_cpu *cpu) { return stq_thread_count(cpu->threads); }

/* Elements and blocks that take part in this step. */
static int64_t active_count(const stq_item *item) { return item->gradient ? item->count : 0; }

static int64_t active_blocks(const stq_item *item) { return stq_block_count(active_count(item)); }

/* Segments first .. end - 1 of the concatenation of all items. */
static void sum_range(const stq_item *items, double *sums, int64_t first, int64_t end) {
    int64_t before = 0;
    for (size_t i = 0; before < end; i++) {
        const stq_item *item = &items[i];
        int64_t segments = stq_segment_count(active_count(item));
        for (int64_t s = first > before ? first - before : 0; s < segments && before + s < end; s++) {
            int64_t left = item->count - s * STQ_SEGMENT;
            const uint8_t *from =
                (const uint8_t *)item->gradient + s * STQ_SEGMENT * (int64_t)stq_dtype_size(item->gradient_type);
            sums[before + s] =
                stq_segment_sum_squares(from, item->gradient_type, left < STQ_SEGMENT ? left : STQ_SEGMENT);
        }
        before += segments;
    }
}

static stq_status sum_squares(void *context, const stq_item *items, size_t count, double *sum) {
    stq_cpu *cpu = context;
    int64_t segments = 0;
    for (size_t i = 0; i < count; i++)
        segments += stq_segment_count(active_count(&items[i]));
#pragma omp parallel num_threads(thread_count(cpu))
    {
        int64_t thread = omp_get_thread_num();
        int64_t threads = omp_get_num_threads();
        uint64_t mode = stq_float_mode_set();
        sum_range(items, cpu->segment_sums, segments * thread / threads, segments * (thread + 1) / threads);
        stq_float_mode_restore(mode);
    }
    stq_tree total = {.count = 0};
    int64_t before = 0;
    for (size_t i = 0; i < count; i++) {
        double of_tensor = stq_tree_sum(cpu->segment_sums + before, stq_segment_count(active_count(&items[i])));
        stq_tree_add(&total, &of_tensor, 1);
        before += stq_segment_count(active_count(&items[i]));
    }
    *sum = stq_tree_finish(&total);
    return STQ_OK;
}

static stq_status factors(void *context, const stq_tensor *tensor, const stq_item *item, double unscale,
                          stq_factors *result) {
    return stq_score_factors(tensor, item->gradient, (float)unscale, thread_count(context), result);
}

static int64_t total_blocks(const stq_item *items, size_t count) {
    int64_t blocks = 0;
    for (size_t i = 0; i < count; i++)
        blocks += active_blocks(&items[i]);
    return blocks;
}

/* One thread's part: blocks first .. end - 1 of the concatenation of all items. */
static void step_range(const stq_kernels *kernels, const stq_item *items, const stq_coefficients *coefficients,
                       int64_t first, int64_t end) {
    int64_t before = 0;
    for (size_t i = 0; before < end; i++) {
        int64_t blocks = active_blocks(&items[i]);
        int64_t from = first > before ? first - before : 0;
        int64_t to = end - before < blocks ? end - before : blocks;
        if (from < to)
            kernels->step(&items[i], &coefficients[items[i].group], from, to);
        before += blocks;
    }
}

static stq_status update(void *context, const stq_item *items, size_t count, const stq_coefficients *coefficients,
                         size_t coefficient_count) {
    (void)coefficient_count;
    const stq_kernels *kernels = stq_select_kernels();
    int64_t blocks = total_blocks(items, count);
#pragma omp parallel num_threads(thread_count(context))
    {
        int64_t thread = omp_get_thread_num();
        int64_t threads = omp_get_num_threads();
        step_range(kernels, items, coefficients, blocks * thread / threads, blocks * (thread + 1) / threads);
    }
    return STQ_OK;
}

/* Scratch for the sums of a shared second moment; the factors follow the sums. */
static stq_status allocate_sums(int64_t means, stq_shared_sums *scratch) {
    scratch->sums = malloc((size_t)means * (sizeof *scratch->sums + sizeof *scratch->factors));
    if (scratch->sums == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the sums of a shared second moment of %lld means.",
                         (long long)means);
    scratch->factors = (float *)(void *)(scratch->sums + means);
    return STQ_OK;
}

/* The means of a shared item, each thread with its own share of them. Where some gradient was far above what its mean
 * let expect the sums are made again, in units that hold the largest. */
static void share_item(const stq_item *item, const stq_shared_sums *scratch, const stq_coefficients *c, int threads) {
    int64_t means = stq_shared_count(item->v_in.bits, item->rows, item->cols);
    int64_t saturated = 0;
#pragma omp parallel num_threads(threads)
    {
        uint64_t mode = stq_float_mode_set();
        int64_t thread = omp_get_thread_num(), all = omp_get_num_threads();
        int64_t first = means * thread / all, end = means * (thread + 1) / all;
        stq_shared_prepare(item, scratch, first, end);
        int64_t own = stq_shared_add(item, scratch, first, end);
#pragma omp atomic
        saturated += own;
#pragma omp barrier
        if (saturated > 0) {
            memset(scratch->sums + first, 0, (size_t)(end - first) * sizeof *scratch->sums);
            stq_shared_largest(item, scratch, first, end);
            stq_shared_rescale(scratch, first, end);
            (void)stq_shared_add(item, scratch, first, end);
        }
        stq_shared_finish(item, scratch, c, first, end);
        stq_float_mode_restore(mode);
    }
    stq_shared_follow(item, c);
}

/* Means that take this step's gradient in. */
static int64_t followed_means(const stq_item *item) {
    bool follows = item->gradient != NULL && stq_is_shared(item->v_in.bits);
    return follows ? stq_shared_count(item->v_in.bits, item->rows, item->cols) : 0;
}

/* The scratch serves all items, so that either all means change or none do. */
static stq_status share_step(void *context, const stq_item *items, size_t count, const stq_coefficients *coefficients) {
    int64_t most = 0;
    for (size_t i = 0; i < count; i++)
        most = followed_means(&items[i]) > most ? followed_means(&items[i]) : most;
    if (most == 0)
        return STQ_OK;
    stq_shared_sums scratch;
    STQ_CHECK(allocate_sums(most, &scratch));
    for (size_t i = 0; i < count; i++)
        if (followed_means(&items[i]) > 0)
            share_item(&items[i], &scratch, &coefficients[items[i].group], thread_count(context));
    free(scratch.sums);
    return STQ_OK;
}

static stq_status share_begin(void *context, const stq_item *item) {
    (void)context;
    stq_shared_sums scratch;
    STQ_CHECK(allocate_sums(stq_shared_count(item->v_out.bits, item->rows, item->cols), &scratch));
    stq_shared_begin(&item->v_out, item, scratch.sums);
    free(scratch.sums);
    return STQ_OK;
}

static stq_status share_probes(void *context, const stq_item *item, float *values) {
    (void)context;
    stq_shared_read_probes(values, item);
    return STQ_OK;
}

static stq_status copy_out(void *context, void *host, const void *source, uint64_t bytes) {
    (void)context;
    memcpy(host, source, (size_t)bytes);
    return STQ_OK;
}

static stq_status copy_in(void *context, void *target, const void *host, uint64_t bytes) {
    (void)context;
    memcpy(target, host, (size_t)bytes);
    return STQ_OK;
}

const stq_backend stq_cpu_backend = {
    .sum_squares = sum_squares,
    .factors = factors,
    .update = update,
    .share_begin = share_begin,
    .share_step = share_step,
    .share_probes = share_probes,
    .read = copy_out,
    .write = copy_in,
};
