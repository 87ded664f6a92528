/*
 * test_factors.c - factors of gradients on a GPU against the CPU's, byte by byte: matrices of many shapes and all
 * types, arrays off their alignment, and gradients at the ends of their range. Prints TAP; exit status 77 without a
 * GPU.
 */
#include <math.h>
#include <stquant/adamw.h>
#include <string.h>

#include "fixture.h"
#include "quant/convert.h"

/* Whole and broken eights, tiles of 256 columns, chunks of 64 rows; products that are small and others; one row. */
static const int64_t shapes[][2] = {
    {64, 256}, {64, 1600}, {130, 264}, {67, 40}, {9, 2056}, {200, 8},   {2, 8},    {3, 3},     {70, 7},
    {65, 250}, {129, 1},   {1, 1},     {1, 96},  {1, 5120}, {1, 66000}, {5, 4099}, {8, 70000}, {2100, 16},
};

enum { SHAPES = sizeof shapes / sizeof *shapes, TENSORS = 3 * SHAPES };

static const char *const kinds[] = {"normal",        "tiny",          "huge",           "one of 1024",
                                    "one row large", "equal numbers", "nothing but one"};

enum { KINDS = sizeof kinds / sizeof *kinds };

static double draw(int kind, int64_t i, int64_t cols, int64_t count, stq_dtype type, uint64_t *state) {
    const double g = random_normal(state);
    const int reach = type == STQ_FLOAT16 ? 12 : 110;
    switch (kind) {
    case 1:
        return ldexp(g, type == STQ_FLOAT32 ? -138 : type == STQ_BFLOAT16 ? -130 : -20);
    case 2:
        return ldexp(g, reach);
    case 3:
        return i > 0 && random_word(state) % 1024 ? 0.0 : g;
    case 4:
        return i / cols == 1 ? 1000.0 * g : 0.01 * g;
    case 5:
        return 0.25;
    case 6:
        return i == count / 2 ? g : 0.0;
    default:
        return 1e-3 * g * (double)(1 + i / cols % 5);
    }
}

typedef struct lists {
    stq_tensor tensors[TENSORS];
    char names[TENSORS][32];
    uint8_t *host[2][TENSORS], *device[2][TENSORS]; /* parameters, gradients */
    size_t shift[TENSORS];                          /* bytes by which gradients are off their alignment */
} lists;

static void open_lists(lists *l) {
    memset(l, 0, sizeof *l);
    for (int i = 0; i < TENSORS; i++) {
        stq_tensor *tensor = &l->tensors[i];
        const int64_t *shape = shapes[i % SHAPES];
        const stq_dtype type = (stq_dtype)(i / SHAPES);
        snprintf(l->names[i], sizeof l->names[i], "%d x %d, type %d", (int)shape[0], (int)shape[1], (int)type);
        *tensor = stq_tensor_whole(l->names[i], shape[0], shape[1]);
        tensor->parameter_type = tensor->gradient_type = type;
        if (shape[0] == 1 || shape[1] == 1) /* else they have float32 states and no factors */
            tensor->m_bits = tensor->v_bits = 6;
        l->shift[i] = i % 4 == 3 ? stq_dtype_size(type) : 0;
        for (int side = 0; side < 2; side++) {
            const size_t bytes = (size_t)tensor->count * stq_dtype_size(type) + l->shift[i];
            l->host[side][i] = calloc(bytes, 1);
            CUDA(cudaMalloc((void **)&l->device[side][i], bytes));
            CUDA(cudaMemset(l->device[side][i], 0, bytes));
        }
    }
}

static void close_lists(lists *l) {
    for (int i = 0; i < TENSORS; i++)
        for (int side = 0; side < 2; side++) {
            free(l->host[side][i]);
            CUDA(cudaFree(l->device[side][i]));
        }
}

static void fill_gradients(lists *l, int kind) {
    uint64_t state = 4242 + (uint64_t)kind;
    for (int i = 0; i < TENSORS; i++) {
        const stq_tensor *tensor = &l->tensors[i];
        uint8_t *gradient = l->host[1][i] + l->shift[i];
        for (int64_t k = 0; k < tensor->count; k++)
            stq_store_float(gradient, tensor->gradient_type, k,
                            (float)draw(kind, k, tensor->cols, tensor->count, tensor->gradient_type, &state), 0x8000u);
        CUDA(cudaMemcpy(l->device[1][i] + l->shift[i], gradient,
                        (size_t)tensor->count * stq_dtype_size(tensor->gradient_type), cudaMemcpyHostToDevice));
    }
}

/* An optimizer after one step, which is a decision. */
static stq_adamw *step_once(lists *l, bool device) {
    void *parameters[TENSORS];
    const void *gradients[TENSORS];
    stq_adamw_config config = stq_adamw_defaults();
    stq_adamw *optimizer;
    config.device = device ? STQ_DEVICE_CUDA : STQ_DEVICE_CPU;
    config.policy.kind = STQ_POLICY_ZONES;
    config.policy.state_bits = 32.0;
    config.exempt_below = 0;
    for (int i = 0; i < TENSORS; i++) {
        parameters[i] = device ? l->device[0][i] : l->host[0][i];
        gradients[i] = (device ? l->device[1][i] : l->host[1][i]) + l->shift[i];
    }
    must(stq_adamw_create(&optimizer, &config, l->tensors, TENSORS));
    stq_step step = {.size = sizeof step,
                     .parameters = parameters,
                     .gradients = gradients,
                     .unscale = 0.125,
                     .max_gradient_norm = 1};
    must(stq_adamw_step(optimizer, &step, NULL));
    return optimizer;
}

static bool check_kind(lists *l, int kind) {
    bool same = true;
    fill_gradients(l, kind);
    stq_adamw *cpu = step_once(l, false), *gpu = step_once(l, true);
    for (size_t i = 0; i < TENSORS; i++) {
        stq_tensor_info on_cpu, on_gpu;
        must(stq_adamw_tensor(cpu, i, &on_cpu));
        must(stq_adamw_tensor(gpu, i, &on_gpu));
        if (memcmp(&on_cpu.factors, &on_gpu.factors, sizeof on_cpu.factors) == 0 && on_cpu.factors.n > 0)
            continue;
        printf("# %s: n %a and %a, r %a and %a, spread %a and %a, near zero %a and %a\n", l->names[i], on_cpu.factors.n,
               on_gpu.factors.n, on_cpu.factors.r, on_gpu.factors.r, on_cpu.factors.row_spread,
               on_gpu.factors.row_spread, on_cpu.factors.near_zero, on_gpu.factors.near_zero);
        same = false;
    }
    stq_adamw_destroy(cpu);
    stq_adamw_destroy(gpu);
    return same;
}

int main(void) {
    static lists l;
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("1..0 # SKIP no GPU\n");
        return 77;
    }
    open_lists(&l);
    for (int kind = 0; kind < KINDS; kind++)
        report(check_kind(&l, kind), "factors of %s are the CPU's", kinds[kind]);
    close_lists(&l);
    printf("1..%d\n", KINDS);
    return failures() != 0;
}
