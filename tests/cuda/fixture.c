/* fixture.c - lists of tensors in both memories. */
#include "fixture.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "quant/convert.h"
#include "quant/kernels.h"
#include "quant/shared.h"

#define GUARD 64
#define GUARD_BYTE 0xa5

static int failed_cases;

void check_cuda(cudaError_t error, const char *call, const char *file, int line) {
    if (error == cudaSuccess)
        return;
    printf("Bail out! %s:%d: %s: %s\n", file, line, call, cudaGetErrorString(error));
    exit(1);
}

void must(stq_status status) {
    if (status == STQ_OK)
        return;
    printf("Bail out! %s: %s\n", stq_status_name(status), stq_last_error());
    exit(1);
}

bool report(bool passed, const char *format, ...) {
    static int number;
    va_list arguments;
    printf("%s %d - ", passed ? "ok" : "not ok", ++number);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    fflush(stdout);
    failed_cases += !passed;
    return passed;
}

int failures(void) { return failed_cases; }

uint32_t random_word(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return stq_hash((uint32_t)(*state >> 32));
}

static double uniform(uint64_t *state) { return (random_word(state) + 0.5) / 4294967296.0; }

double random_normal(uint64_t *state) {
    double radius = sqrt(-2.0 * log(uniform(state)));
    return radius * cos(6.283185307179586 * uniform(state));
}

const char *gradient_name(gradient_kind kind) {
    static const char *const names[] = {"gaussian", "sparse", "dead columns", "zero",   "constant", "wide",
                                        "tiny",     "huge",   "outlier",      "powers", "late"};
    return names[kind];
}

static double gradient_value(const tensor_spec *spec, int64_t i, int64_t step, uint64_t *random) {
    double normal = random_normal(random) * spec->scale;
    switch (spec->kind) {
    case GRADIENT_SPARSE:
        return random_word(random) % 10 ? 0.0 : normal;
    case GRADIENT_DEAD_COLUMNS:
        return i % 16 == 3 ? 0.0 : normal;
    case GRADIENT_ZERO:
        return 0.0;
    case GRADIENT_CONSTANT:
        return spec->scale;
    case GRADIENT_WIDE:
        return ldexp(normal, (int)(random_word(random) % 121) - 60);
    case GRADIENT_TINY:
        return ldexp(normal, -100 - (int)(random_word(random) % 45));
    case GRADIENT_HUGE:
        return ldexp(normal > 0 ? 1.9 : -1.9, 60 + (int)(random_word(random) % 4));
    case GRADIENT_OUTLIER:
        return i % 1000 == 17 ? normal * 1e9 : normal;
    case GRADIENT_POWERS:
        return (random_word(random) & 1 ? 1.0 : -1.0) *
               (random_word(random) % 5 ? ldexp(1.0, -(int)(random_word(random) % 8)) : 0.0);
    case GRADIENT_LATE:
        return step <= 20 ? 0.0 : normal;
    default:
        return normal;
    }
}

static size_t element(stq_dtype type) { return stq_dtype_size(type); }

static buffer make_buffer(size_t bytes) {
    buffer b = {.bytes = bytes};
    b.host = aligned_alloc(64, (bytes + 2 * GUARD + 63) / 64 * 64);
    memset(b.host, GUARD_BYTE, bytes + GUARD);
    CUDA(cudaMalloc((void **)&b.device, bytes + GUARD));
    CUDA(cudaMemset(b.device, GUARD_BYTE, bytes + GUARD));
    return b;
}

static void free_buffer(buffer *b) {
    free(b->host);
    CUDA(cudaFree(b->device));
}

static void upload(const buffer *b) { CUDA(cudaMemcpy(b->device, b->host, b->bytes, cudaMemcpyHostToDevice)); }

/* Planes of a width out of a state's buffers, in one of the memories. */
static stq_planes planes_of(const fixture_state *state, uint32_t bits, bool device) {
#define POINTER(b) (device ? (b).device : (b).host)
    stq_planes planes = {.bits = bits, .scales = (uint16_t *)(void *)POINTER(state->scales)};
    if (stq_is_shared(bits))
        return (stq_planes){.bits = bits, .base = POINTER(state->floats)};
    planes.base = bits == 32 ? POINTER(state->floats) : bits >= 4 ? POINTER(state->nibbles) : POINTER(state->pairs);
    for (uint32_t k = 1; k < stq_plane_count(bits); k++)
        planes.bit[k - 1] = POINTER(state->bit[k - 1]);
    if (bits == 0)
        planes = (stq_planes){.bits = 0};
    return planes;
#undef POINTER
}

/* Means of a second moment, in proportion to the gradients' scale, a few of them 0. */
static void fill_means(const buffer *floats, double scale, uint64_t *random) {
    for (size_t i = 0; i < floats->bytes / sizeof(float); i++) {
        double mean = random_word(random) % 50 ? scale * scale * (0.1 + uniform(random)) : 0.0;
        ((float *)(void *)floats->host)[i] = (float)mean;
    }
    upload(floats);
}

static void open_tensor(fixture_tensor *t, const tensor_spec *spec, uint32_t index, uint64_t *random) {
    t->spec = *spec;
    for (int s = 0; s < 2; s++) {
        fixture_state *state = &t->state[s];
        size_t blocks = (size_t)stq_block_count(spec->count);
        state->nibbles = make_buffer(blocks * 64);
        state->pairs = make_buffer(blocks * 32);
        for (int k = 0; k < 4; k++)
            state->bit[k] = make_buffer(blocks * 16);
        state->floats = make_buffer((size_t)spec->count * 4);
        state->scales = make_buffer(blocks * 2);
    }
    size_t extra = (size_t)spec->misalignment;
    t->parameter = make_buffer(((size_t)spec->count + extra) * element(spec->parameter_type));
    t->gradient = make_buffer(((size_t)spec->count + extra) * element(spec->gradient_type));
    for (int64_t i = 0; i < spec->count + spec->misalignment; i++) {
        double value = random_word(random) % 16 ? random_normal(random) * 0.05 : random_word(random) & 1 ? 0.0 : -0.0;
        stq_store_float(t->parameter.host, spec->parameter_type, i, (float)value, random_word(random) & 0xffffu);
    }
    upload(&t->parameter);
    t->item = (stq_item){.count = spec->count,
                         .first_block = spec->first_block,
                         .tensor = index,
                         .parameter_type = spec->parameter_type,
                         .gradient_type = spec->gradient_type,
                         .parameter = t->parameter.host + extra * element(spec->parameter_type),
                         .gradient = t->gradient.host + extra * element(spec->gradient_type)};
    t->item.cols = spec->cols;
    t->item.rows = spec->cols > 0 ? (spec->first_block * STQ_BLOCK + spec->count + spec->cols - 1) / spec->cols : 0;
    if (stq_is_shared(spec->v_bits))
        fill_means(&t->state[1].floats, spec->scale, random);
    t->item.m_in = planes_of(&t->state[0], spec->m_bits, false);
    t->item.v_in = planes_of(&t->state[1], spec->v_bits, false);
    t->item.m_out = planes_of(&t->state[0], spec->m_next ? spec->m_next : spec->m_bits, false);
    t->item.v_out = planes_of(&t->state[1], spec->v_next ? spec->v_next : spec->v_bits, false);
}

static void open_lists(fixture *f) {
    stq_item *items = malloc(f->count * sizeof *items);
    for (size_t i = 0; i < f->count; i++)
        items[i] = f->tensors[i].item;
    if (stq_worklist_make(&f->list, items, f->count) != STQ_OK) {
        printf("Bail out! %s\n", stq_last_error());
        exit(1);
    }
    free(items);
    size_t tiles = (size_t)f->list.tile_count, segments = (size_t)f->list.segment_count;
    CUDA(cudaMalloc((void **)&f->tiles, tiles * sizeof *f->tiles));
    CUDA(cudaMalloc((void **)&f->segments, segments * sizeof *f->segments));
    CUDA(cudaMalloc((void **)&f->first_segment, (f->count + 1) * sizeof *f->first_segment));
    CUDA(cudaMalloc((void **)&f->sums, (segments + f->count + 1) * sizeof *f->sums));
    CUDA(cudaMalloc((void **)&f->device_items, f->count * sizeof *f->device_items));
    CUDA(cudaMalloc((void **)&f->coefficients, f->count * sizeof *f->coefficients));
    CUDA(cudaMalloc((void **)&f->control, sizeof *f->control));
    CUDA(cudaMemset(f->control, 0, sizeof *f->control));
    CUDA(cudaMemcpy(f->tiles, f->list.tiles, tiles * sizeof *f->tiles, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(f->segments, f->list.segments, segments * sizeof *f->segments, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(f->first_segment, f->list.first_segment, (f->count + 1) * sizeof *f->first_segment,
                    cudaMemcpyHostToDevice));
}

void fixture_open(fixture *f, const tensor_spec *specs, size_t count, uint64_t seed) {
    memset(f, 0, sizeof *f);
    f->seed = seed;
    f->count = count;
    f->group =
        (stq_adamw_group){.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1};
    f->tensors = calloc(count, sizeof *f->tensors);
    uint64_t random = seed;
    for (size_t i = 0; i < count; i++)
        open_tensor(&f->tensors[i], &specs[i], (uint32_t)i, &random);
    open_lists(f);
}

void fixture_close(fixture *f) {
    for (size_t i = 0; i < f->count; i++) {
        for (int s = 0; s < 2; s++) {
            fixture_state *state = &f->tensors[i].state[s];
            buffer *all[] = {&state->nibbles, &state->pairs,  &state->bit[0], &state->bit[1],
                             &state->bit[2],  &state->bit[3], &state->floats, &state->scales};
            for (int k = 0; k < 8; k++)
                free_buffer(all[k]);
        }
        free_buffer(&f->tensors[i].parameter);
        free_buffer(&f->tensors[i].gradient);
    }
    stq_worklist_free(&f->list);
    CUDA(cudaFree(f->tiles));
    CUDA(cudaFree(f->segments));
    CUDA(cudaFree(f->first_segment));
    CUDA(cudaFree(f->sums));
    CUDA(cudaFree(f->device_items));
    CUDA(cudaFree(f->coefficients));
    CUDA(cudaFree(f->control));
    free(f->tensors);
}

void fixture_gradients(fixture *f, int64_t step) {
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < f->count; i++) {
        fixture_tensor *t = &f->tensors[i];
        uint64_t random = f->seed * 1000003u + (uint64_t)step * 7919u + i;
        int64_t extra = t->spec.misalignment;
        for (int64_t k = 0; k < t->spec.count; k++)
            stq_store_float(t->gradient.host, t->spec.gradient_type, k + extra,
                            (float)gradient_value(&t->spec, k, step, &random), 0x8000u);
    }
    for (size_t i = 0; i < f->count; i++)
        upload(&f->tensors[i].gradient);
}

void fixture_target(fixture *f, size_t tensor, uint32_t m_bits, uint32_t v_bits) {
    fixture_tensor *t = &f->tensors[tensor];
    if (m_bits)
        t->item.m_out = planes_of(&t->state[0], m_bits, false);
    if (v_bits)
        t->item.v_out = planes_of(&t->state[1], v_bits, false);
}

void fixture_upload_items(fixture *f) {
    stq_device_item *items = calloc(f->count, sizeof *items);
    for (size_t i = 0; i < f->count; i++) {
        const fixture_tensor *t = &f->tensors[i];
        stq_item *item = &items[i].item;
        *item = t->item;
        item->parameter = t->parameter.device + ((uint8_t *)t->item.parameter - t->parameter.host);
        item->gradient =
            t->item.gradient ? t->gradient.device + ((const uint8_t *)t->item.gradient - t->gradient.host) : NULL;
        item->m_in = planes_of(&t->state[0], item->m_in.bits, true);
        item->m_out = planes_of(&t->state[0], item->m_out.bits, true);
        item->v_in = planes_of(&t->state[1], item->v_in.bits, true);
        item->v_out = planes_of(&t->state[1], item->v_out.bits, true);
        items[i].kind = stq_item_kind(item, f->error_compensation != 0.0);
    }
    CUDA(cudaMemcpy(f->device_items, items, f->count * sizeof *items, cudaMemcpyHostToDevice));
    free(items);
}

void fixture_step(fixture *f, int64_t step, double gradient_factor) {
    stq_coefficients one =
        stq_step_coefficients(&f->group, gradient_factor, f->error_compensation, f->seed, (uint64_t)step);
    stq_coefficients *all = malloc(f->count * sizeof *all);
    for (size_t i = 0; i < f->count; i++)
        all[i] = one;
    CUDA(cudaMemcpy(f->coefficients, all, f->count * sizeof *all, cudaMemcpyHostToDevice));
    free(all);
    fixture_upload_items(f);
    CUDA(stq_cuda_step(f->device_items, f->tiles, f->list.tile_count, f->coefficients, f->control, 0));
    CUDA(stq_cuda_step_shared(f->device_items, f->tiles, f->list.tile_count, f->coefficients, f->control, 0));
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < f->count; i++)
        stq_reference_kernels.step(&f->tensors[i].item, &one, 0, stq_block_count(f->tensors[i].item.count));
    for (size_t i = 0; i < f->count; i++) {
        f->tensors[i].item.m_in = f->tensors[i].item.m_out;
        f->tensors[i].item.v_in = f->tensors[i].item.v_out;
    }
    CUDA(cudaDeviceSynchronize());
}

/* Where a buffer differs, guard included; -1 if nowhere. */
static int64_t difference(const buffer *b) {
    static uint8_t *copy;
    static size_t room;
    size_t bytes = b->bytes + GUARD;
    if (room < bytes) {
        free(copy);
        copy = malloc(bytes);
        room = bytes;
    }
    CUDA(cudaMemcpy(copy, b->device, bytes, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < bytes; i++)
        if (copy[i] != b->host[i])
            return (int64_t)i;
    return -1;
}

bool fixture_differs(const fixture *f, char *text, size_t size) {
    static const char *const names[] = {"nibbles", "pairs", "bit 0", "bit 1", "bit 2", "bit 3", "floats", "scales"};
    for (size_t i = 0; i < f->count; i++) {
        const fixture_tensor *t = &f->tensors[i];
        int64_t at = difference(&t->parameter);
        const char *what = at >= 0 ? "parameter" : NULL;
        for (int s = 0; s < 2 && !what; s++) {
            const fixture_state *state = &t->state[s];
            const buffer *all[] = {&state->scales, &state->nibbles, &state->pairs,  &state->bit[0],
                                   &state->bit[1], &state->bit[2],  &state->bit[3], &state->floats};
            static const int order[] = {7, 0, 1, 2, 3, 4, 5, 6};
            for (int k = 0; k < 8 && !what; k++)
                if ((at = difference(all[k])) >= 0)
                    what = names[order[k]];
            if (what)
                snprintf(text, size, "tensor %zu (%s, %lld values, %u/%u bits, types %d %d): %s of %s, byte %lld", i,
                         gradient_name(t->spec.kind), (long long)t->spec.count, t->item.m_out.bits, t->item.v_out.bits,
                         (int)t->spec.parameter_type, (int)t->spec.gradient_type, what, s ? "v" : "m", (long long)at);
            if (what)
                return true;
        }
        if (what) {
            snprintf(text, size, "tensor %zu (%s, %lld values, %u/%u bits, types %d %d): parameter, byte %lld", i,
                     gradient_name(t->spec.kind), (long long)t->spec.count, t->item.m_out.bits, t->item.v_out.bits,
                     (int)t->spec.parameter_type, (int)t->spec.gradient_type, (long long)at);
            return true;
        }
    }
    return false;
}
