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

/* A tensor of more than 2^31 values: states start from nothing, so that slices of it can be followed on the host. */
static void test_huge(void) {
    const int64_t count = ((int64_t)1 << 31) + 70000;
    size_t room, all;
    CUDA(cudaMemGetInfo(&room, &all));
    if (room < (size_t)count * 6) {
        report(true, "more than 2^31 values # SKIP not enough memory");
        return;
    }
    enum { SLICE = 1024 };
    static uint16_t gradients[65536], parameters[SLICE];
    uint64_t random = 5;
    for (int i = 0; i < 65536; i++)
        gradients[i] = stq_to_bfloat16((float)random_normal(&random), 0x8000u);
    uint8_t *device[14];
    stq_device_item big = {
        .item = {.count = count, .parameter_type = STQ_BFLOAT16, .gradient_type = STQ_BFLOAT16, .tensor = 3}};
    size_t blocks = (size_t)stq_block_count(count);
    const size_t bytes[] = {(size_t)count * 2 + 140000,
                            (size_t)count * 2 + 140000,
                            blocks * 64,
                            blocks * 16,
                            blocks * 2,
                            blocks * 64,
                            blocks * 16,
                            blocks * 2};
    for (int k = 0; k < 8; k++)
        CUDA(cudaMalloc((void **)&device[k], bytes[k]));
    CUDA(cudaMemset(device[0], 0, bytes[0]));
    for (int64_t at = 0; at < count; at += 65536)
        CUDA(cudaMemcpyAsync(device[1] + at * 2, gradients, sizeof gradients, cudaMemcpyHostToDevice, 0));
    big.item.parameter = device[0];
    big.item.gradient = device[1];
    stq_planes m = {.base = device[2], .bit = {device[3]}, .scales = (uint16_t *)(void *)device[4], .bits = 5};
    stq_planes v = {.base = device[5], .bit = {device[6]}, .scales = (uint16_t *)(void *)device[7], .bits = 5};
    big.item.m_out = m;
    big.item.v_out = v;
    stq_worklist list;
    stq_worklist_make(&list, &big.item, 1);
    stq_tile *tiles;
    stq_device_item *items;
    stq_coefficients *coefficients;
    stq_control *control;
    CUDA(cudaMalloc((void **)&tiles, (size_t)list.tile_count * sizeof *tiles));
    CUDA(cudaMemcpy(tiles, list.tiles, (size_t)list.tile_count * sizeof *tiles, cudaMemcpyHostToDevice));
    CUDA(cudaMalloc((void **)&items, sizeof *items));
    CUDA(cudaMalloc((void **)&coefficients, sizeof *coefficients));
    CUDA(cudaMalloc((void **)&control, sizeof *control));
    CUDA(cudaMemset(control, 0, sizeof *control));
    stq_adamw_group group = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8};
    stq_coefficients steps[2];
    for (int step = 0; step < 2; step++) {
        steps[step] = stq_step_coefficients(&group, 1.0, 0.0, 9, (uint64_t)step + 1);
        big.kind = stq_item_kind(&big.item, false);
        CUDA(cudaMemcpy(items, &big, sizeof big, cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy(coefficients, &steps[step], sizeof *coefficients, cudaMemcpyHostToDevice));
        CUDA(stq_cuda_step(items, tiles, list.tile_count, coefficients, control, 0));
        big.item.m_in = m;
        big.item.v_in = v;
    }
    int wrong = 0;
    for (int place = 0; place < 3; place++) {
        int64_t first = place == 0   ? 0
                        : place == 1 ? ((int64_t)1 << 31) - 512
                                     : (count - SLICE) / STQ_BLOCK * STQ_BLOCK;
        int64_t length = place == 2 ? count - first : SLICE;
        static uint8_t state[2][SLICE], slice[SLICE * 2], copy[SLICE * 2];
        static uint16_t scales[2][16], slice_gradients[SLICE * 2];
        static uint8_t low_bits[2][SLICE / 8 + 32];
        memset(parameters, 0, sizeof parameters);
        memset(slice, 0, sizeof slice);
        for (int64_t i = 0; i < length; i++)
            slice_gradients[i] = gradients[(first + i) % 65536];
        stq_item item = {.count = length,
                         .parameter = slice,
                         .gradient = slice_gradients,
                         .first_block = first / STQ_BLOCK,
                         .tensor = 3,
                         .parameter_type = STQ_BFLOAT16,
                         .gradient_type = STQ_BFLOAT16};
        item.m_out = (stq_planes){.base = state[0], .bit = {low_bits[0]}, .scales = scales[0], .bits = 5};
        item.v_out = (stq_planes){.base = state[1], .bit = {low_bits[1]}, .scales = scales[1], .bits = 5};
        for (int step = 0; step < 2; step++) {
            stq_reference_kernels.step(&item, &steps[step], 0, stq_block_count(length));
            item.m_in = item.m_out;
            item.v_in = item.v_out;
        }
        CUDA(cudaMemcpy(copy, device[0] + first * 2, (size_t)length * 2, cudaMemcpyDeviceToHost));
        wrong += memcmp(copy, slice, (size_t)length * 2) != 0;
        CUDA(cudaMemcpy(copy, device[5] + first / 2, (size_t)length / 2, cudaMemcpyDeviceToHost));
        wrong += memcmp(copy, state[1], (size_t)length / 2) != 0;
    }
    report(wrong == 0, "a tensor of 2^31 + 70000 values: %d of 6 slices differ", wrong);
    for (int k = 0; k < 8; k++)
        CUDA(cudaFree(device[k]));
    CUDA(cudaFree(tiles));
    CUDA(cudaFree(items));
    CUDA(cudaFree(coefficients));
    CUDA(cudaFree(control));
    stq_worklist_free(&list);
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
    test_sums(seed + 60);
    test_prepare(seed + 70);
    test_large(seed + 80);
    if (!quick)
        test_huge();
    printf("# %d failed\n", failures());
    return failures() ? 1 : 0;
}
