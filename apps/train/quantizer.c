#include "train/quantizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The linear layers of a transformer block: queries, keys and values; the attention's projection; the two of the MLP.
enum { BLOCK_LAYERS = 4 };

// Side of the squares in which matrices are transposed: 16 floats are a cache line.
enum { TILE = 16 };

const char *const quantizer_estimators[QUANTIZER_ESTIMATORS] = {
    [STQ_QAT_STRAIGHT_THROUGH] = "ste", [STQ_QAT_STABLE] = "stable", [STQ_QAT_SOFT] = "dsq"};

int quantizer_estimator(const char *name) {
    for (int i = 0; name && i < QUANTIZER_ESTIMATORS; i++) {
        if (strcmp(quantizer_estimators[i], name) == 0) {
            return i;
        }
    }
    return -1;
}

enum app_status quantizer_check(const stq_qat_config *config) { return app_check_asked(stq_qat_check(config, 1)); }

int quantizer_applies(const struct parameter *parameter) {
    return parameter->dimensions == 2 && strncmp(parameter->name, "h.", 2) == 0;
}

void quantizer_name(const char *weight, const char *suffix, char name[64]) {
    const char *dot = strrchr(weight, '.');
    snprintf(name, 64, "%.*s%s", dot ? (int)(dot - weight) : (int)strlen(weight), weight, suffix);
}

int quantizer_add_steps(struct parameter_set *set) {
    const int weights = set->count;
    for (int i = 0; i < weights; i++) {
        const struct parameter weight = set->list[i];
        if (quantizer_applies(&weight)) {
            char name[64];
            quantizer_name(weight.name, ".steps", name);
            const int index = parameters_add(set, name, 1, weight.cols, 1, 0, 1);
            if (index < 0) {
                return index;
            }
            set->list[index].is_steps = 1;
        }
    }
    return 0;
}

void quantizer_place(struct quantizer *quantizer, struct arena *arena, int64_t blocks, int64_t width) {
    static const int64_t squares[BLOCK_LAYERS] = {3, 1, 4, 4};
    for (int64_t i = 0; i < blocks * BLOCK_LAYERS; i++) {
        float *values = arena_floats(arena, squares[i % BLOCK_LAYERS] * width * width);
        if (quantizer->layers) {
            quantizer->layers[i].values = values;
        }
    }
    quantizer->weight_rows = arena_floats(arena, 4 * width * width);
    quantizer->gradient_rows = arena_floats(arena, 4 * width * width);
    quantizer->step_gradient = arena_floats(arena, 4 * width);
}

enum app_status quantizer_create(struct quantizer *quantizer, const stq_qat_config *config, int64_t blocks) {
    *quantizer = (struct quantizer){.config = *config, .count = (int)(blocks * BLOCK_LAYERS)};
    enum app_status status = quantizer_check(config);
    if (status != APP_OK) {
        return status;
    }
    quantizer->layers = calloc((size_t)quantizer->count, sizeof(*quantizer->layers));
    return quantizer->layers ? APP_OK
                             : app_fail(APP_FAILED, "There is no memory for %d quantized layers.", quantizer->count);
}

void quantizer_release(struct quantizer *quantizer) {
    free(quantizer->layers);
    *quantizer = (struct quantizer){0};
}

// out (columns, rows) = in (rows, columns) transposed; added to where `sum` is 1.
static void transpose(const float *in, float *out, int64_t rows, int64_t columns, int sum) {
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < columns; first += TILE) {
        const int64_t end = first + TILE < columns ? first + TILE : columns;
        for (int64_t top = 0; top < rows; top += TILE) {
            const int64_t bottom = top + TILE < rows ? top + TILE : rows;
            for (int64_t column = first; column < end; column++) {
                for (int64_t row = top; row < bottom; row++) {
                    float *to = &out[column * rows + row];
                    *to = (sum ? *to : 0.0f) + in[row * columns + column];
                }
            }
        }
    }
}

enum app_status quantizer_bind(struct quantizer *quantizer, const struct parameter_set *set) {
    int weights = 0, steps = set->count - quantizer->count;
    for (int i = 0; i < set->count && weights < quantizer->count; i++) {
        if (quantizer_applies(&set->list[i])) {
            struct quantized_linear *layer = &quantizer->layers[weights++];
            layer->quantizer = quantizer;
            layer->weight = &set->list[i];
            layer->steps = &set->list[steps++];
        }
    }
    return quantizer_start(quantizer);
}

enum app_status quantizer_start(const struct quantizer *quantizer) {
    stq_status status = STQ_OK;
    for (int i = 0; status == STQ_OK && i < quantizer->count; i++) {
        const struct quantized_linear *layer = &quantizer->layers[i];
        const int64_t inputs = layer->weight->rows, outputs = layer->weight->cols;
        transpose(layer->weight->values, quantizer->weight_rows, inputs, outputs, 0);
        status = stq_qat_initial_steps(layer->steps->values, &quantizer->config, quantizer->weight_rows, STQ_FLOAT32,
                                       outputs, inputs);
    }
    return app_check(status);
}

// values (inputs, outputs) = the quantized weight; `rows` is scratch of its size. `values` may be the weight.
static stq_status quantize(const struct parameter *weight, const struct parameter *steps, const stq_qat_config *config,
                           float *rows, float *values) {
    const int64_t inputs = weight->rows, outputs = weight->cols;
    transpose(weight->values, rows, inputs, outputs, 0);
    stq_status status = stq_qat_forward(rows, config, rows, steps->values, STQ_FLOAT32, outputs, inputs);
    transpose(rows, values, outputs, inputs, 0);
    return status;
}

enum app_status quantizer_refresh(const struct quantizer *quantizer) {
    stq_status status = STQ_OK;
    for (int i = 0; status == STQ_OK && i < quantizer->count; i++) {
        const struct quantized_linear *layer = &quantizer->layers[i];
        status = quantize(layer->weight, layer->steps, &quantizer->config, quantizer->weight_rows, layer->values);
    }
    return app_check(status);
}

void quantizer_backward(const struct quantized_linear *layer) {
    struct quantizer *quantizer = layer->quantizer;
    const int64_t inputs = layer->weight->rows, outputs = layer->weight->cols;
    float *rows = quantizer->gradient_rows;
    transpose(layer->weight->values, quantizer->weight_rows, inputs, outputs, 0);
    stq_status status = stq_qat_backward(rows, quantizer->step_gradient, &quantizer->config, quantizer->weight_rows,
                                         layer->steps->values, rows, STQ_FLOAT32, outputs, inputs);
    transpose(rows, layer->weight->gradients, outputs, inputs, 1);
    for (int64_t i = 0; i < outputs; i++) {
        layer->steps->gradients[i] += quantizer->step_gradient[i];
    }
    quantizer->status = quantizer->status == STQ_OK ? status : quantizer->status;
}

enum app_status quantizer_status(struct quantizer *quantizer) {
    stq_status status = quantizer->status;
    quantizer->status = STQ_OK;
    return app_check(status);
}

static const struct parameter *find_steps(const struct parameter_set *set, const struct parameter *weight) {
    char name[64];
    quantizer_name(weight->name, ".steps", name);
    return parameters_find(set, name);
}

// Scratch for one matrix; app_fail's sentence where there is none.
static float *scratch_for(const struct parameter *weight) {
    float *rows = memory_floats(weight->rows * weight->cols);
    if (!rows) {
        app_fail(APP_FAILED, "There is no memory for a copy of '%s'.", weight->name);
    }
    return rows;
}

enum app_status quantizer_round(const struct parameter_set *set, const stq_qat_config *config) {
    enum app_status status = APP_OK;
    for (int i = 0; status == APP_OK && i < set->count; i++) {
        const struct parameter *weight = &set->list[i], *steps = find_steps(set, weight);
        if (!quantizer_applies(weight) || !steps) {
            continue;
        }
        float *rows = scratch_for(weight);
        status = rows ? app_check(quantize(weight, steps, config, rows, weight->values)) : APP_FAILED;
        free(rows);
    }
    return status;
}

enum app_status quantizer_pack(const struct parameter *weight, const struct parameter *steps,
                               const stq_qat_config *config, uint8_t *codes) {
    const int64_t inputs = weight->rows, outputs = weight->cols;
    float *rows = scratch_for(weight);
    if (!rows) {
        return APP_FAILED;
    }
    transpose(weight->values, rows, inputs, outputs, 0);
    enum app_status status = app_check(stq_qat_pack(codes, config, rows, steps->values, STQ_FLOAT32, outputs, inputs));
    free(rows);
    return status;
}

enum app_status quantizer_unpack(const struct parameter *weight, const float *steps, const stq_qat_config *config,
                                 const uint8_t *codes) {
    const int64_t inputs = weight->rows, outputs = weight->cols;
    float *rows = scratch_for(weight);
    if (!rows) {
        return APP_FAILED;
    }
    enum app_status status = app_check(stq_qat_unpack(rows, config, codes, steps, outputs, inputs));
    transpose(rows, weight->values, outputs, inputs, 0);
    free(rows);
    return status;
}
