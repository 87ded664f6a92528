/*
 * test_fake_quantize.c - the passes of quantization-aware training on a GPU against the CPU's, byte by byte: every
 * width, estimator and type, groups of all lengths, addresses off their alignment, and numbers at every edge. Prints
 * TAP; exit status 77 without a GPU. --quick takes fewer weights, for an emulated GPU or compute-sanitizer.
 */
#include <math.h>
#include <stquant/qat.h>
#include <string.h>

#include "fixture.h"
#include "quant/convert.h"

enum { GUARD = 64 }; /* bytes on either side of what may be written */

/* The same memory twice. */
typedef struct twin {
    uint8_t *host, *device;
    size_t bytes;
} twin;

static twin take(size_t bytes) {
    twin t = {.bytes = bytes + 2 * GUARD};
    t.host = malloc(t.bytes);
    memset(t.host, 0x5a, t.bytes);
    CUDA(cudaMalloc((void **)&t.device, t.bytes));
    return t;
}

static void upload(const twin *t) { CUDA(cudaMemcpy(t->device, t->host, t->bytes, cudaMemcpyHostToDevice)); }

static bool equal(const twin *t) {
    uint8_t *back = malloc(t->bytes);
    CUDA(cudaMemcpy(back, t->device, t->bytes, cudaMemcpyDeviceToHost));
    bool same = memcmp(back, t->host, t->bytes) == 0;
    for (size_t i = 0; !same && i < t->bytes; i++)
        if (back[i] != t->host[i]) {
            printf("# byte %zu of %zu: %02x, the CPU has %02x\n", i - GUARD, t->bytes - 2 * GUARD, back[i], t->host[i]);
            break;
        }
    free(back);
    return same;
}

static void release(twin *t) {
    free(t->host);
    CUDA(cudaFree(t->device));
}

typedef struct matrix {
    int64_t rows, cols, group;
    stq_dtype dtype;
    size_t shift;  /* elements off the alignment */
    bool ordinary; /* numbers as trainings have them, for which the kernels have a short way; else of every kind */
} matrix;

/* Weights over the whole range of codes and beyond it; grid points, ties and the range's ends exactly; and the edges of
 * float's range. */
static float draw_weight(uint64_t *state, float step, uint32_t bits) {
    const float span = (float)(1 << bits) * step;
    const uint32_t word = random_word(state);
    switch (word % 64) {
    case 0:
        return word & 64 ? 0.0f : -0.0f;
    case 1:
        return (float)((int)(word >> 8 & 511) - 256) * 0.5f * step;
    case 2:
        return ldexpf((float)random_normal(state), -120 - (int)(word >> 8) % 29);
    case 3:
        return ldexpf((float)random_normal(state), 55 + (int)(word >> 8) % 70);
    case 4:
        return word & 64 ? INFINITY : -INFINITY;
    case 5:
        return word & 128 ? NAN : 0x1p-149f;
    default:
        return 0.4f * span * (float)random_normal(state);
    }
}

static float draw_step(uint64_t *state) {
    static const float odd[] = {0.0f, -1.0f, NAN, 1e-30f, 1e-5f, 0x1p61f, 0x1p60f, 3e38f};
    const uint32_t word = random_word(state);
    return word % 16 == 0 ? odd[word >> 8 & 7] : 0.01f * (0.5f + (float)(word >> 8) * 0x1p-24f);
}

typedef struct fill {
    twin weights, gradient, steps, quantized, weight_gradient, step_gradient;
} fill;

static fill open_fill(const stq_qat_config *config, const matrix *m, uint64_t *state) {
    const int64_t count = m->rows * m->cols, groups = stq_qat_step_count(config, m->rows, m->cols);
    const size_t size = ((size_t)count + m->shift) * stq_dtype_size(m->dtype), vector = (size_t)groups * sizeof(float);
    fill f = {take(size), take(size), take(vector), take(size), take(size), take(vector)};
    float *steps = (float *)(void *)(f.steps.host + GUARD);
    for (int64_t i = 0; i < groups; i++)
        steps[i] = draw_step(state);
    for (int64_t i = 0; i < count; i++) {
        const float step = steps[i / m->group], usable = step > 1e-5f && step < 1.0f ? step : 1e-5f;
        const float gradient = random_word(state) % 32 ? (float)random_normal(state) : -0.0f;
        const float weight =
            m->ordinary ? 0.1f * (float)random_normal(state) : draw_weight(state, usable, config->bits);
        stq_store_float(f.weights.host + GUARD, m->dtype, i + (int64_t)m->shift, weight, 0);
        stq_store_float(f.gradient.host + GUARD, m->dtype, i + (int64_t)m->shift,
                        m->ordinary ? 0.1f * gradient : gradient, 0);
    }
    twin *const all[] = {&f.weights, &f.gradient, &f.steps, &f.quantized, &f.weight_gradient, &f.step_gradient};
    for (int i = 0; i < 6; i++)
        upload(all[i]);
    return f;
}

static void close_fill(fill *f) {
    twin *const all[] = {&f->weights, &f->gradient, &f->steps, &f->quantized, &f->weight_gradient, &f->step_gradient};
    for (int i = 0; i < 6; i++)
        release(all[i]);
}

/* All of a fill's passes in one of the memories; the last two in place. */
static bool run_passes(const stq_qat_config *config, const matrix *m, const fill *f, bool device) {
#define AT(part) ((device ? f->part.device : f->part.host) + GUARD)
    const size_t shift = m->shift * stq_dtype_size(m->dtype);
    float *steps = (float *)(void *)AT(steps), *step_gradient = (float *)(void *)AT(step_gradient);
    stq_status status =
        stq_qat_forward(AT(quantized) + shift, config, AT(weights) + shift, steps, m->dtype, m->rows, m->cols);
    if (status == STQ_OK)
        status = stq_qat_backward(AT(weight_gradient) + shift, step_gradient, config, AT(weights) + shift, steps,
                                  AT(gradient) + shift, m->dtype, m->rows, m->cols);
    if (status == STQ_OK)
        status = stq_qat_backward(AT(gradient) + shift, step_gradient, config, AT(weights) + shift, steps,
                                  AT(gradient) + shift, m->dtype, m->rows, m->cols);
    if (status == STQ_OK)
        status = stq_qat_forward(AT(weights) + shift, config, AT(weights) + shift, steps, m->dtype, m->rows, m->cols);
#undef AT
    if (status != STQ_OK)
        printf("# %s\n", stq_last_error());
    return status == STQ_OK;
}

static bool check_matrix(stq_qat_config config, const matrix *m, uint64_t seed) {
    uint64_t state = seed;
    config.group = m->group == m->cols ? 0 : m->group;
    fill f = open_fill(&config, m, &state);
    bool same = run_passes(&config, m, &f, false);
    config.device = STQ_DEVICE_CUDA;
    same = run_passes(&config, m, &f, true) && same;
    CUDA(cudaDeviceSynchronize());
    same = same && equal(&f.quantized) && equal(&f.weight_gradient) && equal(&f.step_gradient) && equal(&f.gradient) &&
           equal(&f.weights);
    if (!same)
        printf("# %lld x %lld, groups of %lld, type %d, %zu off, seed %llu\n", (long long)m->rows, (long long)m->cols,
               (long long)m->group, (int)m->dtype, m->shift, (unsigned long long)seed);
    close_fill(&f);
    return same;
}

typedef struct estimator {
    const char *name;
    stq_qat_estimator which;
    uint32_t harmonics;
    double amplitudes[STQ_QAT_MAX_HARMONICS], softness;
} estimator;

static const estimator estimators[] = {
    {"ste", STQ_QAT_STRAIGHT_THROUGH, 1, {0}, 0.2},
    {"stable 0.21", STQ_QAT_STABLE, 1, {0.21}, 0.2},
    {"stable -0.2, by its formula", STQ_QAT_STABLE, 1, {-0.2}, 0.2},
    {"stable of three harmonics", STQ_QAT_STABLE, 3, {0.2, -0.05, 0.03}, 0.2},
    {"stable of eight harmonics", STQ_QAT_STABLE, 8, {0.1, -0.02, 0.02, -0.02, 0.01, -0.01, 0.01, 0.015}, 0.2},
    {"dsq 0.2", STQ_QAT_SOFT, 1, {0}, 0.2},
    {"dsq 0.001, by its formula", STQ_QAT_SOFT, 1, {0}, 0.001},
};

static const int64_t shapes[][3] = {
    {5, 768, 768}, {3, 4096, 4096}, {2, 20000, 20000}, {7, 1000, 250}, {4, 2304, 32}, {3, 1030, 1030}, {9, 96, 8},
    {9, 3, 3},     {3, 24, 1},      {2, 9236, 9236},   {40, 128, 128}, {6, 192, 64},  {1, 1024, 1024}, {1, 1028, 1028},
};

enum { SHAPES = sizeof shapes / sizeof *shapes };

int main(int argc, char **argv) {
    const bool quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
    int devices = 0, number = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("1..0 # SKIP no GPU\n");
        return 77;
    }
    for (size_t e = 0; e < sizeof estimators / sizeof *estimators; e++)
        for (uint32_t bits = 1; bits <= 8; bits++) {
            stq_qat_config config = stq_qat_defaults();
            config.bits = bits;
            config.estimator = estimators[e].which;
            config.harmonics = estimators[e].harmonics;
            memcpy(config.amplitudes, estimators[e].amplitudes, sizeof config.amplitudes);
            config.softness = estimators[e].softness;
            bool same = true;
            for (int turn = 0; same && turn < (quick ? 3 : 3 * SHAPES); turn++) {
                const int shape = quick ? (number * 5 + turn * 3) % SHAPES : turn % SHAPES;
                matrix m = {shapes[shape][0],
                            shapes[shape][1],
                            shapes[shape][2],
                            (stq_dtype)((quick ? turn : turn / SHAPES) % 3),
                            0,
                            (number + turn) % 2 == 0};
                m.shift = (number + turn) % 5 == 1;
                same = check_matrix(config, &m, (uint64_t)(number * 100 + turn + 1));
            }
            report(same, "%s at %u bits is the CPU's", estimators[e].name, bits);
            number++;
        }
    stq_qat_config config = stq_qat_defaults();
    config.device = STQ_DEVICE_CUDA;
    float one = 1.0f, step;
    report(stq_qat_initial_steps(&step, &config, &one, STQ_FLOAT32, 1, 1) == STQ_UNSUPPORTED &&
               strstr(stq_last_error(), "on the CPU") != NULL,
           "first steps are refused on a GPU with a sentence");
    printf("1..%d\n", number + 1);
    return failures() != 0;
}
