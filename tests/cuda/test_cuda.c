/*
 * test_cuda.c - the GPU kernels against the scalar reference, byte by byte, and their arithmetic. One command on a GPU
 * machine: tests/cuda/run. Prints TAP; exit status 0 if every case passed, 77 without a GPU.
 */
#include <math.h>
#include <string.h>

#include "arithmetic.h"
#include "fixture.h"
#include "quant/convert.h"
#include "quant/kernels.h"
#include "quant/shared.h"
#include "score/sums.h"

typedef struct counters {
    unsigned long long wrong, tested;
    float example[2];
} counters;

static counters read_counters(counters *device) {
    counters host;
    CUDA(cudaMemcpy(&host, device, sizeof host, cudaMemcpyDeviceToHost));
    CUDA(cudaMemset(device, 0, sizeof host));
    return host;
}

static void test_arithmetic(uint64_t seed) {
    counters *device;
    CUDA(cudaMalloc((void **)&device, sizeof *device));
    CUDA(cudaMemset(device, 0, sizeof *device));
    CUDA(test_roots(27u << 23, 187u << 23, &device->wrong));
    counters found = read_counters(device);
    report(found.wrong == 0, "square roots of all floats from 2^-100 to 2^60: %llu wrong", found.wrong);
    CUDA(test_hard_quotients(&device->wrong, &device->tested, device->example));
    found = read_counters(device);
    report(found.wrong == 0 && found.tested > 50000000, "the %llu hardest quotients: %llu wrong (%a / %a)",
           found.tested, found.wrong, (double)found.example[0], (double)found.example[1]);
    CUDA(test_random_quotients((uint32_t)seed, 20000, &device->wrong, device->example));
    found = read_counters(device);
    report(found.wrong == 0, "5 10^9 random quotients: %llu wrong (%a / %a)", found.wrong, (double)found.example[0],
           (double)found.example[1]);
    uint32_t *inverses, host[32768];
    CUDA(cudaMalloc((void **)&inverses, sizeof host));
    CUDA(test_inverses(inverses));
    CUDA(cudaMemcpy(host, inverses, sizeof host, cudaMemcpyDeviceToHost));
    int wrong = 0;
    for (uint32_t word = 27u << 7; word < 0x7f00u - (6u << 7); word++)
        wrong += host[word] != stq_float_bits(stq_m_inverse(word));
    report(wrong == 0, "3 / scale for the scale words in use: %d wrong", wrong);
    CUDA(cudaFree(inverses));
    CUDA(cudaFree(device));
}

/* Every pair of widths, dtypes, lengths and kinds of gradients by turns, all in one launch. */
static size_t all_pairs(tensor_spec *specs, uint32_t turn) {
    static const stq_dtype types[][2] = {{STQ_BFLOAT16, STQ_BFLOAT16}, {STQ_FLOAT32, STQ_FLOAT32},
                                         {STQ_FLOAT32, STQ_BFLOAT16},  {STQ_BFLOAT16, STQ_FLOAT32},
                                         {STQ_FLOAT16, STQ_FLOAT16},   {STQ_FLOAT32, STQ_FLOAT16}};
    static const int64_t lengths[] = {1, 127, 128, 129, 255, 256, 1000, 2048, 2049, 5000, 16384, 16384 + 300};
    size_t count = 0;
    for (uint32_t m = 2; m <= 8; m++)
        for (uint32_t v = 2; v <= 8; v++) {
            uint32_t n = (uint32_t)count + turn;
            const stq_dtype *pair = types[n % 8 < 3 ? n % 8 : (n * 7 + turn) % 6];
            specs[count++] = (tensor_spec){.count = lengths[(n * 5 + turn) % 12],
                                           .m_next = m,
                                           .v_next = v,
                                           .parameter_type = pair[0],
                                           .gradient_type = pair[1],
                                           .kind = (gradient_kind)((n + turn * 3) % GRADIENT_KINDS),
                                           .scale = 1e-3,
                                           .first_block = (int64_t)n * 1000,
                                           .misalignment = n % 13 == 5 ? 1 : 0};
            gradient_kind kind = specs[count - 1].kind;
            if (pair[1] == STQ_FLOAT16 && (kind == GRADIENT_WIDE || kind == GRADIENT_HUGE || kind == GRADIENT_OUTLIER))
                specs[count - 1].kind = GRADIENT_TINY; /* the others overflow */
        }
    for (int i = 0; i < 4; i++)
        specs[count++] = (tensor_spec){.count = 77 + 1000 * i,
                                       .m_next = 32,
                                       .v_next = 32,
                                       .parameter_type = types[i][0],
                                       .gradient_type = types[i][1],
                                       .scale = 1e-3};
    return count;
}

static void test_pairs(uint64_t seed, int64_t steps) {
    tensor_spec specs[64];
    for (uint32_t turn = 0; turn < 4; turn++) {
        fixture f;
        char text[300] = "";
        fixture_open(&f, specs, all_pairs(specs, turn), seed + turn);
        f.group.beta2 = turn % 2 ? 0.999 : 0.95;
        f.error_compensation = turn == 3 ? 0.5 : 0.0;
        int64_t step = 1;
        for (; step <= steps && !fixture_differs(&f, text, sizeof text); step++) {
            fixture_gradients(&f, step);
            fixture_step(&f, step, turn == 2 ? 0.37 : 1.0);
        }
        bool same = !fixture_differs(&f, text, sizeof text);
        report(same, "all pairs of widths in one launch, list %u, %lld steps%s%s", turn, (long long)step - 1,
               same ? "" : ": ", text);
        fixture_close(&f);
    }
}

/* Every width of m with a second moment that is shared by rows and by columns. */
static void test_shared(uint64_t seed, int64_t steps) {
    static const stq_dtype types[][2] = {
        {STQ_BFLOAT16, STQ_BFLOAT16}, {STQ_FLOAT32, STQ_FLOAT32}, {STQ_FLOAT32, STQ_BFLOAT16}};
    static const int64_t cols[] = {1600, 8, 64, 256, 264, 768, 20, 2048, 4104}; /* 20: no multiple of 8 */
    tensor_spec specs[7 * 2 * 3];
    size_t count = 0;
    for (uint32_t m = 2; m <= 8; m++)
        for (uint32_t v = STQ_BITS_SHARED_ROW; v <= STQ_BITS_SHARED_COL; v++)
            for (int type = 0; type < 3; type++, count++)
                specs[count] = (tensor_spec){.count = 40000 + 16 * (int64_t)count * (int64_t)count,
                                             .m_next = m,
                                             .v_bits = v,
                                             .parameter_type = types[type][0],
                                             .gradient_type = types[type][1],
                                             .kind = (gradient_kind)(count % GRADIENT_KINDS),
                                             .scale = 1e-3,
                                             .first_block = count % 4 == 3 ? 50 : 0,
                                             .cols = cols[(count + m) % 9]};
    fixture f;
    char text[300] = "";
    fixture_open(&f, specs, count, seed);
    int64_t step = 1;
    for (; step <= steps && !fixture_differs(&f, text, sizeof text); step++) {
        fixture_gradients(&f, step);
        fixture_step(&f, step, 1.0);
    }
    bool same = !fixture_differs(&f, text, sizeof text);
    report(same, "shared second moments, %zu tensors, %lld steps%s%s", count, (long long)step - 1, same ? "" : ": ",
           text);
    fixture_close(&f);
}

/* Widths of every tensor change at random every few steps. */
static void test_transitions(uint64_t seed, int64_t steps) {
    tensor_spec specs[64];
    fixture f;
    char text[300] = "";
    uint64_t random = seed;
    fixture_open(&f, specs, all_pairs(specs, 9), seed);
    int64_t step = 1;
    for (; step <= steps && !fixture_differs(&f, text, sizeof text); step++) {
        for (size_t i = 0; i < f.count && step > 1; i++)
            if (f.tensors[i].item.m_in.bits != 32 && random_word(&random) % 4 == 0)
                fixture_target(&f, i, 2 + random_word(&random) % 7, 2 + random_word(&random) % 7);
        fixture_gradients(&f, step);
        fixture_step(&f, step, 1.0);
    }
    bool same = !fixture_differs(&f, text, sizeof text);
    report(same, "random transitions, %lld steps%s%s", (long long)step - 1, same ? "" : ": ", text);
    fixture_close(&f);
}

static void test_large(uint64_t seed) {
    tensor_spec specs[] = {{.count = 3000001,
                            .m_next = 5,
                            .v_next = 5,
                            .parameter_type = STQ_BFLOAT16,
                            .gradient_type = STQ_BFLOAT16,
                            .scale = 1e-4},
                           {.count = 999999,
                            .m_next = 4,
                            .v_next = 3,
                            .parameter_type = STQ_FLOAT32,
                            .gradient_type = STQ_FLOAT32,
                            .scale = 1e-4}};
    fixture f;
    char text[300] = "";
    fixture_open(&f, specs, 2, seed);
    for (int64_t step = 1; step <= 6; step++) {
        fixture_gradients(&f, step);
        fixture_step(&f, step, 1.0);
    }
    bool same = !fixture_differs(&f, text, sizeof text);
    report(same, "tensors of millions of values%s%s", same ? "" : ": ", text);
    fixture_close(&f);
}

static double reference_sum(const fixture *f) {
    static stq_tree total;
    memset(&total, 0, sizeof total);
    for (size_t i = 0; i < f->count; i++) {
        const stq_item *item = &f->tensors[i].item;
        static stq_tree of_tensor;
        memset(&of_tensor, 0, sizeof of_tensor);
        for (int64_t first = 0; first < item->count && item->gradient; first += STQ_SEGMENT) {
            int64_t left = item->count - first;
            double sum = stq_segment_sum_squares((const uint8_t *)item->gradient +
                                                     (size_t)first * stq_dtype_size(item->gradient_type),
                                                 item->gradient_type, left < STQ_SEGMENT ? left : STQ_SEGMENT);
            stq_tree_add(&of_tensor, &sum, 1);
        }
        double sum = stq_tree_finish(&of_tensor);
        stq_tree_add(&total, &sum, 1);
    }
    return stq_tree_finish(&total);
}

static double device_sum(fixture *f) {
    double sum, *total = f->sums + f->list.segment_count + f->list.item_count;
    fixture_upload_items(f);
    CUDA(stq_cuda_sum_squares(f->device_items, f->list.item_count, f->segments, f->list.segment_count, f->first_segment,
                              f->sums, total, 0));
    CUDA(cudaMemcpy(&sum, total, sizeof sum, cudaMemcpyDeviceToHost));
    return sum;
}

static void test_sums(uint64_t seed) {
    static const int64_t counts[] = {1, 2047, 65536, 65537, 200000, 131072, 4096, 500001};
    tensor_spec specs[24];
    for (int i = 0; i < 24; i++)
        specs[i] = (tensor_spec){.count = counts[i % 8],
                                 .m_next = 4,
                                 .v_next = 4,
                                 .gradient_type = (stq_dtype)(i / 8),
                                 .kind = i % 5 || i >= 16 ? GRADIENT_GAUSSIAN : GRADIENT_WIDE,
                                 .scale = 1e-3,
                                 .misalignment = i % 7 == 3};
    fixture f;
    fixture_open(&f, specs, 24, seed);
    fixture_gradients(&f, 1);
    double host = reference_sum(&f), device = device_sum(&f);
    report(host == device && host > 0, "sum of squares %.17g, reference %.17g", device, host);
    f.tensors[3].item.gradient = NULL;
    host = reference_sum(&f), device = device_sum(&f);
    report(host == device, "sum of squares without one gradient");
    uint16_t infinity = 0x7f80;
    CUDA(cudaMemcpy(f.tensors[10].gradient.device + 5000, &infinity, 2, cudaMemcpyHostToDevice));
    report(!isfinite(device_sum(&f)), "an infinite gradient is found");
    fixture_close(&f);
}

/* Coefficients and the skipping of steps, all on the device. */
static void test_prepare(uint64_t seed) {
    tensor_spec specs[3] = {{.count = 300, .m_next = 4, .v_next = 4, .scale = 1},
                            {.count = 300, .m_next = 4, .v_next = 4, .scale = 1},
                            {.count = 300, .m_next = 4, .v_next = 4, .scale = 1}};
    fixture f;
    fixture_open(&f, specs, 3, seed);
    stq_adamw_group *groups;
    int64_t *missed;
    CUDA(cudaMalloc((void **)&groups, sizeof *groups));
    CUDA(cudaMalloc((void **)&missed, 3 * sizeof *missed));
    CUDA(cudaMemset(missed, 0, 3 * sizeof *missed));
    CUDA(stq_cuda_set_group(groups, 0, &f.group, 0));
    stq_prepare request = {
        .unscale = 0.125, .max_gradient_norm = 1.5, .error_compensation = 0.5, .seed = seed, .norm_supplied = 1};
    int wrong = 0;
    for (int64_t step = 1; step <= 40; step++) {
        f.tensors[1].item.gradient = step % 3 ? f.tensors[1].gradient.host : NULL;
        fixture_upload_items(&f);
        for (int try_step = 0; try_step < 2; try_step++) { /* first with a norm that skips */
            request.given_norm = try_step ? 2.25 : INFINITY;
            CUDA(stq_cuda_prepare(&request, f.device_items, groups, missed, f.coefficients, 3, f.control, 0));
        }
        stq_coefficients device[3];
        CUDA(cudaMemcpy(device, f.coefficients, sizeof device, cudaMemcpyDeviceToHost));
        for (int i = 0; i < 3; i++) {
            int64_t lost = i == 1 ? (step - 1) / 3 : 0;
            stq_coefficients host =
                stq_step_coefficients(&f.group, 0.125 * stq_clip_factor(2.25, 1.5), 0.5, seed, (uint64_t)(step - lost));
            host.step_key = stq_step_key(seed, (uint64_t)step);
            wrong += memcmp(&host, &device[i], sizeof host) != 0;
        }
    }
    stq_control control;
    CUDA(cudaMemcpy(&control, f.control, sizeof control, cudaMemcpyDeviceToHost));
    report(wrong == 0, "coefficients made on the device: %d of 120 differ", wrong);
    report(control.steps == 40 && control.skipped == 40 && control.norm == 2.25,
           "steps with an infinite norm are not counted");
    CUDA(cudaFree(groups));
    CUDA(cudaFree(missed));
    fixture_close(&f);
}

/* A tensor of more than 2^31 values, 5 bits, bfloat16. Its states start from nothing, so that slices of it can be
 * followed on the host; its gradient repeats every 65,536 values. */
enum { SLICE = 1024, PERIOD = 65536, HUGE_STEPS = 2 };

typedef struct huge {
    int64_t count;
    uint16_t gradients[PERIOD];
    uint8_t *parameter, *gradient, *state[2], *low_bits[2], *scales[2]; /* on the device */
    stq_coefficients steps[HUGE_STEPS];
} huge;

static stq_planes five_bits(uint8_t *base, uint8_t *low_bits, void *scales) {
    stq_planes planes = {.base = base, .bit = {low_bits}, .scales = scales, .bits = 5};
    return planes;
}

static stq_item huge_item(int64_t count, int64_t first, void *parameter, const void *gradient) {
    stq_item item = {.count = count,
                     .parameter = parameter,
                     .gradient = gradient,
                     .first_block = first / STQ_BLOCK,
                     .tensor = 3,
                     .parameter_type = STQ_BFLOAT16,
                     .gradient_type = STQ_BFLOAT16};
    return item;
}

static void open_huge(huge *h) {
    size_t blocks = (size_t)stq_block_count(h->count);
    uint64_t random = 5;
    for (int i = 0; i < PERIOD; i++)
        h->gradients[i] = stq_to_bfloat16((float)random_normal(&random), 0x8000u);
    CUDA(cudaMalloc((void **)&h->parameter, (size_t)h->count * 2));
    CUDA(cudaMalloc((void **)&h->gradient, ((size_t)h->count + PERIOD) * 2));
    CUDA(cudaMemset(h->parameter, 0, (size_t)h->count * 2));
    for (int64_t at = 0; at < h->count; at += PERIOD)
        CUDA(cudaMemcpy(h->gradient + at * 2, h->gradients, sizeof h->gradients, cudaMemcpyHostToDevice));
    for (int s = 0; s < 2; s++) {
        CUDA(cudaMalloc((void **)&h->state[s], blocks * 64));
        CUDA(cudaMalloc((void **)&h->low_bits[s], blocks * 16));
        CUDA(cudaMalloc((void **)&h->scales[s], blocks * 2));
    }
    stq_adamw_group group = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8};
    for (int step = 0; step < HUGE_STEPS; step++)
        h->steps[step] = stq_step_coefficients(&group, 1.0, 0.0, 9, (uint64_t)step + 1);
}

static void close_huge(huge *h) {
    CUDA(cudaFree(h->parameter));
    CUDA(cudaFree(h->gradient));
    for (int s = 0; s < 2; s++) {
        CUDA(cudaFree(h->state[s]));
        CUDA(cudaFree(h->low_bits[s]));
        CUDA(cudaFree(h->scales[s]));
    }
}

static void step_huge(const huge *h) {
    stq_device_item item = {.item = huge_item(h->count, 0, h->parameter, h->gradient)};
    item.item.m_out = five_bits(h->state[0], h->low_bits[0], h->scales[0]);
    item.item.v_out = five_bits(h->state[1], h->low_bits[1], h->scales[1]);
    stq_worklist list;
    if (stq_worklist_make(&list, &item.item, 1) != STQ_OK) {
        report(false, "the work list of a huge tensor: %s", stq_last_error());
        return;
    }
    struct {
        stq_device_item item;
        stq_coefficients coefficients;
        stq_control control;
    } * device;
    stq_tile *tiles;
    CUDA(cudaMalloc((void **)&device, sizeof *device));
    CUDA(cudaMemset(device, 0, sizeof *device));
    CUDA(cudaMalloc((void **)&tiles, (size_t)list.tile_count * sizeof *tiles));
    CUDA(cudaMemcpy(tiles, list.tiles, (size_t)list.tile_count * sizeof *tiles, cudaMemcpyHostToDevice));
    for (int step = 0; step < HUGE_STEPS; step++) {
        item.kind = stq_item_kind(&item.item, false);
        CUDA(cudaMemcpy(&device->item, &item, sizeof item, cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy(&device->coefficients, &h->steps[step], sizeof *h->steps, cudaMemcpyHostToDevice));
        CUDA(stq_cuda_step(&device->item, tiles, list.tile_count, &device->coefficients, &device->control, 0));
        item.item.m_in = item.item.m_out;
        item.item.v_in = item.item.v_out;
    }
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaFree(device));
    CUDA(cudaFree(tiles));
    stq_worklist_free(&list);
}

/* Whether `length` values from `first` on differ from the reference's, in parameters or in v's nibbles. */
static bool slice_differs(const huge *h, int64_t first, int64_t length) {
    static uint8_t state[2][SLICE], low_bits[2][SLICE], copy[SLICE * 2];
    static uint16_t parameters[SLICE], gradients[SLICE], scales[2][SLICE];
    memset(parameters, 0, sizeof parameters);
    for (int64_t i = 0; i < length; i++)
        gradients[i] = h->gradients[(first + i) % PERIOD];
    stq_item item = huge_item(length, first, parameters, gradients);
    item.m_out = five_bits(state[0], low_bits[0], scales[0]);
    item.v_out = five_bits(state[1], low_bits[1], scales[1]);
    for (int step = 0; step < HUGE_STEPS; step++) {
        stq_reference_kernels.step(&item, &h->steps[step], 0, stq_block_count(length));
        item.m_in = item.m_out;
        item.v_in = item.v_out;
    }
    CUDA(cudaMemcpy(copy, h->parameter + first * 2, (size_t)length * 2, cudaMemcpyDeviceToHost));
    bool differs = memcmp(copy, parameters, (size_t)length * 2) != 0;
    CUDA(cudaMemcpy(copy, h->state[1] + first / 2, (size_t)length / 2, cudaMemcpyDeviceToHost));
    return differs || memcmp(copy, state[1], (size_t)length / 2) != 0;
}

static void test_huge(void) {
    static huge h = {.count = ((int64_t)1 << 31) + 70000};
    size_t room, all;
    CUDA(cudaMemGetInfo(&room, &all));
    if (room < (size_t)h.count * 6) {
        report(true, "more than 2^31 values # SKIP not enough memory");
        return;
    }
    open_huge(&h);
    step_huge(&h);
    int64_t end = (h.count - SLICE) / STQ_BLOCK * STQ_BLOCK + STQ_BLOCK;
    int wrong = slice_differs(&h, 0, SLICE) + slice_differs(&h, ((int64_t)1 << 31) - 512, SLICE) +
                slice_differs(&h, end, h.count - end);
    report(wrong == 0, "a tensor of 2^31 + 70000 values: %d of 3 slices differ", wrong);
    close_huge(&h);
}

int main(int argc, char **argv) {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("1..0 # SKIP no GPU\n");
        return 77;
    }
    bool quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
    uint64_t seed = 20260604;
    printf("# seed %llu\n", (unsigned long long)seed);
    if (!quick)
        test_arithmetic(seed);
    test_pairs(seed, quick ? 3 : 300);
    test_transitions(seed + 50, quick ? 4 : 60);
    test_shared(seed + 55, quick ? 3 : 60);
    test_sums(seed + 60);
    test_prepare(seed + 70);
    test_large(seed + 80);
    if (!quick)
        test_huge();
    printf("# %d failed\n", failures());
    return failures() ? 1 : 0;
}
