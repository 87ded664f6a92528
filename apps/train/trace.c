#include "train/trace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/log.h"

enum {
    VERSION = 1,
    NARROWEST = 2,
    WIDTHS = 7,          // 2 to 8
    SAMPLED_BLOCKS = 16, // of each tensor
    SAMPLE = SAMPLED_BLOCKS * STQ_BLOCK,
    LONGEST_WINDOW = 1000
};

// Shadows of a sample of one tensor's states. They begin as copies of the live state at a decision; then the exact ones
// follow the gradients in float32, and each coded one is rounded to its width after every step, as a store would.
struct probe {
    int64_t first[SAMPLED_BLOCKS]; // elements at which the sampled blocks begin
    int blocks;
    float *exact[2]; // (blocks x 128)
    float *coded[2][WIDTHS];
    double errors[2][WIDTHS]; // sums of squares over the window, each step weighted by its place in it
    double updates;
    float *values; // the allocation of all shadows
};

struct trace {
    struct log *log;
    struct probe *probes;
    int count;
    int64_t window; // steps since the shadows began; -1 = no shadows yet
    uint8_t *planes;
};

static enum app_status no_memory(void) { return app_fail(APP_FAILED, "There is no memory for --trace."); }

static enum app_status make_probe(struct probe *probe, int64_t elements) {
    int64_t blocks = elements / STQ_BLOCK; // whole ones
    probe->blocks = blocks < SAMPLED_BLOCKS ? (int)blocks : SAMPLED_BLOCKS;
    for (int k = 0; k < probe->blocks; k++) {
        probe->first[k] = blocks * k / probe->blocks * STQ_BLOCK;
    }
    probe->values = calloc((size_t)(2 + 2 * WIDTHS) * SAMPLE, sizeof(float));
    if (!probe->values) {
        return no_memory();
    }
    float *next = probe->values;
    for (int state = 0; state < 2; state++) {
        probe->exact[state] = next;
        next += SAMPLE;
        for (int width = 0; width < WIDTHS; width++, next += SAMPLE) {
            probe->coded[state][width] = next;
        }
    }
    return APP_OK;
}

enum app_status trace_open(const char *path, const struct optimizer *optimizer, struct trace **trace) {
    *trace = NULL;
    if (optimizer->sharded) {
        return app_fail(APP_USAGE, "--trace needs the whole states in one process; run it without mpirun.");
    }
    struct trace *made = calloc(1, sizeof(*made));
    if (!made) {
        return no_memory();
    }
    made->window = -1;
    made->count = optimizer->tensors;
    made->probes = calloc((size_t)made->count, sizeof(*made->probes));
    made->planes = malloc(SAMPLE * 2);
    enum app_status status = made->probes && made->planes ? log_open(path, 0, &made->log) : no_memory();
    for (int i = 0; status == APP_OK && i < made->count; i++) {
        const struct parameter *parameter = &optimizer->parameters->list[i];
        status = make_probe(&made->probes[i], parameter->rows * parameter->cols);
    }
    if (status == APP_OK) {
        const struct optimizer_settings *settings = &optimizer->settings;
        status = log_write(made->log, json_pack("{s:i, s:f, s:f, s:I}", "stquant_trace", VERSION, "beta1",
                                                settings->beta1, "beta2", settings->beta2, "decide_every",
                                                (json_int_t)settings->policy.decide_every));
    }
    if (status != APP_OK) {
        trace_close(made);
        return status;
    }
    *trace = made;
    return APP_OK;
}

enum app_status trace_close(struct trace *trace) {
    if (!trace) {
        return APP_OK;
    }
    enum app_status status = log_close(trace->log);
    for (int i = 0; trace->probes && i < trace->count; i++) {
        free(trace->probes[i].values);
    }
    free(trace->probes);
    free(trace->planes);
    free(trace);
    return status;
}

// ---- Shadows ----

static enum app_status begin_shadows(struct trace *trace, const struct optimizer *optimizer) {
    for (int i = 0; i < trace->count; i++) {
        struct probe *probe = &trace->probes[i];
        size_t bytes = (size_t)probe->blocks * STQ_BLOCK * sizeof(float);
        memset(probe->errors, 0, sizeof(probe->errors));
        probe->updates = 0;
        for (int state = 0; state < 2; state++) {
            for (int k = 0; k < probe->blocks; k++) {
                enum app_status status =
                    app_check(stq_adamw_read_state(optimizer->adamw, (size_t)i, (stq_state)state,
                                                   probe->exact[state] + k * STQ_BLOCK, probe->first[k], STQ_BLOCK));
                if (status != APP_OK) {
                    return status;
                }
            }
            for (int width = 0; width < WIDTHS; width++) {
                memcpy(probe->coded[state][width], probe->exact[state], bytes);
            }
        }
    }
    trace->window = 0;
    return APP_OK;
}

// Rounds values to a width and back.
static enum app_status round_values(struct trace *trace, float *values, int blocks, stq_state state, int bits,
                                    int64_t step, int tensor) {
    int64_t count = (int64_t)blocks * STQ_BLOCK;
    uint8_t *next = trace->planes;
    stq_planes planes = {.scales = (uint16_t *)(void *)next, .bits = (uint32_t)bits};
    next += SAMPLED_BLOCKS * sizeof(uint16_t);
    planes.base = next;
    next += stq_plane_bytes(count, planes.bits, 0);
    for (uint32_t k = 1; k < stq_plane_count(planes.bits); k++) {
        planes.bit[k - 1] = next;
        next += stq_plane_bytes(count, planes.bits, k);
    }
    stq_random random = {.seed = 0x7472616365u, .step = (uint64_t)step, .tensor = (uint32_t)(tensor * WIDTHS + bits)};
    stq_status status = stq_encode(&planes, state, values, count, &random);
    return app_check(status == STQ_OK ? stq_decode(values, &planes, state, count) : status);
}

static float sampled_gradient(const struct optimizer *optimizer, int tensor, const struct probe *probe, int i) {
    const float *gradient = optimizer->parameters->list[tensor].gradients;
    return gradient[probe->first[i / STQ_BLOCK] + i % STQ_BLOCK];
}

// Earlier steps, which still owe much to the exact copies at the window's begin, count less.
static void fade(struct probe *probe, int64_t window) {
    double keep = (double)window / (double)(window + 1);
    probe->updates *= keep;
    for (int width = 0; width < WIDTHS; width++) {
        probe->errors[0][width] *= keep;
        probe->errors[1][width] *= keep;
    }
}

static void follow(struct probe *probe, const struct optimizer *optimizer, int tensor, double factor, double epsilon) {
    float beta1 = (float)optimizer->settings.beta1, beta2 = (float)optimizer->settings.beta2;
    for (int i = 0; i < probe->blocks * STQ_BLOCK; i++) {
        float g = sampled_gradient(optimizer, tensor, probe, i) * (float)factor;
        float gains[2] = {(1 - beta1) * g, (1 - beta2) * g * g}, decays[2] = {beta1, beta2};
        for (int state = 0; state < 2; state++) {
            probe->exact[state][i] = decays[state] * probe->exact[state][i] + gains[state];
            for (int width = 0; width < WIDTHS; width++) {
                float *value = &probe->coded[state][width][i];
                *value = decays[state] * *value + gains[state];
            }
        }
        double m = (double)probe->exact[0][i], v = (double)probe->exact[1][i];
        if (v == 0) {
            continue;
        }
        double denominator = sqrt(v) + epsilon, update = m / denominator;
        probe->updates += update * update;
        for (int width = 0; width < WIDTHS; width++) {
            double m_error = ((double)probe->coded[0][width][i] - m) / denominator;
            double v_error = m / (sqrt((double)probe->coded[1][width][i]) + epsilon) - update;
            probe->errors[0][width] += m_error * m_error;
            probe->errors[1][width] += v_error * v_error;
        }
    }
}

static enum app_status advance_shadows(struct trace *trace, const struct optimizer *optimizer, int64_t step,
                                       double norm) {
    const struct optimizer_settings *settings = &optimizer->settings;
    double factor = settings->clip > 0 && norm > settings->clip ? settings->clip / norm : 1;
    double epsilon = settings->epsilon * sqrt(1 - pow(settings->beta2, (double)step));
    enum app_status status = APP_OK;
    for (int i = 0; i < trace->count; i++) {
        struct probe *probe = &trace->probes[i];
        fade(probe, trace->window);
        follow(probe, optimizer, i, factor, epsilon);
        for (int width = 0; width < WIDTHS && status == APP_OK; width++) {
            for (int state = 0; state < 2 && status == APP_OK; state++) {
                status = round_values(trace, probe->coded[state][width], probe->blocks, (stq_state)state,
                                      NARROWEST + width, step, i);
            }
        }
    }
    trace->window++;
    return status;
}

// ---- What is written ----

static json_t *describe_errors(const struct probe *probe, int state) {
    json_t *list = json_array();
    for (int width = 0; width < WIDTHS; width++) {
        json_array_append_new(list, log_number(sqrt(probe->errors[state][width] / probe->updates)));
    }
    return list;
}

// Octaves between the largest and the smallest positive magnitude of a block, mean over the sampled blocks.
static double mean_range(const float *values, int blocks) {
    double sum = 0;
    int counted = 0;
    for (int block = 0; block < blocks; block++) {
        float largest = 0, lowest = INFINITY;
        for (int i = 0; i < STQ_BLOCK; i++) {
            float magnitude = fabsf(values[block * STQ_BLOCK + i]);
            largest = fmaxf(largest, magnitude);
            lowest = magnitude > 0 ? fminf(lowest, magnitude) : lowest;
        }
        if (largest > 0) {
            sum += log2((double)largest / (double)lowest);
            counted++;
        }
    }
    return counted ? sum / counted : NAN;
}

// Mean^2 / variance of v inside a line, harmonic mean over the lines; lines of zeros do not count.
static double line_ratio(const float *v, int64_t lines, int64_t line_stride, int64_t count, int64_t stride) {
    double inverse = 0;
    int64_t counted = 0;
    for (int64_t line = 0; line < lines; line++) {
        double sum = 0, squares = 0;
        for (int64_t i = 0; i < count; i++) {
            double value = (double)v[line * line_stride + i * stride];
            sum += value;
            squares += value * value;
        }
        double mean = sum / (double)count;
        if (mean > 0 && count > 1) {
            inverse += squares / (double)count / (mean * mean) - 1;
            counted++;
        }
    }
    return counted && inverse > 0 ? (double)counted / inverse : NAN;
}

static enum app_status add_ratios(json_t *object, const struct optimizer *optimizer, int tensor) {
    const struct parameter *parameter = &optimizer->parameters->list[tensor];
    int64_t rows = parameter->rows, cols = parameter->cols;
    float *v = malloc((size_t)(rows * cols) * sizeof(*v));
    if (!v) {
        return no_memory();
    }
    enum app_status status =
        app_check(stq_adamw_read_state(optimizer->adamw, (size_t)tensor, STQ_SECOND_MOMENT, v, 0, rows * cols));
    if (status == APP_OK) {
        json_object_set_new(object, "row_ratio", log_number(line_ratio(v, rows, cols, cols, 1)));
        json_object_set_new(object, "column_ratio", log_number(line_ratio(v, cols, 1, rows, cols)));
    }
    free(v);
    return status;
}

static json_t *describe_factors(const struct optimizer *optimizer, int tensor, const stq_tensor_info *info) {
    const struct parameter *parameter = &optimizer->parameters->list[tensor];
    const stq_factors *f = &info->factors;
    return json_pack("{s:s, s:I, s:I, s:s, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "name", info->name,
                     "rows", (json_int_t)parameter->rows, "cols", (json_int_t)parameter->cols, "zone",
                     stq_zone_name(info->zone), "m_bits", (int)info->m_bits, "v_bits", (int)info->v_bits, "n", f->n,
                     "r", f->r, "sharpness", f->sharpness, "kurtosis", f->kurtosis, "row_spread", f->row_spread,
                     "near_zero", f->near_zero, "volatility", f->volatility, "depth", f->depth);
}

static enum app_status describe_tensor(const struct trace *trace, const struct optimizer *optimizer, int i,
                                       json_t *list) {
    stq_tensor_info info;
    enum app_status status = app_check(stq_adamw_tensor(optimizer->adamw, (size_t)i, &info));
    if (status != APP_OK || info.zone == STQ_ZONE_EXEMPT) {
        return status;
    }
    const struct probe *probe = &trace->probes[i];
    json_t *object = describe_factors(optimizer, i, &info);
    bool known = trace->window > 0 && probe->updates > 0;
    json_object_set_new(object, "m_error", known ? describe_errors(probe, 0) : json_null());
    json_object_set_new(object, "v_error", known ? describe_errors(probe, 1) : json_null());
    json_object_set_new(object, "m_range", log_number(mean_range(probe->exact[0], probe->blocks)));
    json_object_set_new(object, "v_range", log_number(mean_range(probe->exact[1], probe->blocks)));
    status = add_ratios(object, optimizer, i);
    json_array_append_new(list, object);
    return status;
}

static enum app_status write_decision(struct trace *trace, const struct optimizer *optimizer, int64_t step) {
    json_t *list = json_array();
    enum app_status status = APP_OK;
    for (int i = 0; i < trace->count && status == APP_OK; i++) {
        status = describe_tensor(trace, optimizer, i, list);
    }
    if (status != APP_OK) {
        json_decref(list);
        return status;
    }
    return log_write(trace->log, json_pack("{s:I, s:I, s:o}", "step", (json_int_t)step, "window",
                                           (json_int_t)(trace->window > 0 ? trace->window : 0), "tensors", list));
}

enum app_status trace_step(struct trace *trace, const struct optimizer *optimizer, int64_t step,
                           const stq_step_result *result) {
    if (!trace || result->skipped) {
        return APP_OK;
    }
    enum app_status status = APP_OK;
    if (trace->window >= 0 && trace->window < LONGEST_WINDOW) {
        status = advance_shadows(trace, optimizer, step, result->gradient_norm);
    }
    if (status == APP_OK && result->decided) {
        status = write_decision(trace, optimizer, step);
        status = status == APP_OK ? begin_shadows(trace, optimizer) : status;
    }
    return status;
}
