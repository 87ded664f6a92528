#include "train/telemetry.h"

#include <math.h>
#include <stdlib.h>

#include "train/log.h"

enum { PIECE = 1 << 14 };

// Mean square of m, or mean of v.
static double state_mean(const struct optimizer *optimizer, size_t index, stq_state state, int64_t count) {
    float values[PIECE];
    double sum = 0;
    for (int64_t first = 0; first < count; first += PIECE) {
        const int64_t piece = count - first < PIECE ? count - first : PIECE;
        if (stq_adamw_read_state(optimizer->adamw, index, state, values, first, piece) != STQ_OK) {
            return NAN;
        }
        for (int64_t i = 0; i < piece; i++) {
            sum += state == STQ_FIRST_MOMENT ? (double)values[i] * values[i] : values[i];
        }
    }
    return sum / (double)count;
}

// A shared second moment is logged with 0 bits and the dimension of its means.
static void describe_sharing(json_t *tensor, uint32_t v_bits) {
    if (v_bits == STQ_BITS_SHARED_ROW || v_bits == STQ_BITS_SHARED_COL) {
        json_object_set_new(tensor, "v_bits", json_integer(0));
        json_object_set_new(tensor, "v_shared", json_string(v_bits == STQ_BITS_SHARED_ROW ? "row" : "column"));
    }
}

static json_t *describe(const struct optimizer *optimizer, size_t index, const stq_tensor_info *info) {
    const struct parameter *parameter = &optimizer->parameters->list[index];
    const int64_t count = parameter->rows * parameter->cols;
    json_t *object = json_pack("{s:s, s:o, s:o, s:s, s:i, s:i}", "name", info->name, "n", log_number(info->factors.n),
                               "r", log_number(info->factors.r), "zone", stq_zone_name(info->zone), "m_bits",
                               (int)info->m_bits, "v_bits", (int)info->v_bits);
    describe_sharing(object, info->v_bits);
    if (!optimizer->sharded) { // otherwise this rank has a part of the states only
        json_object_set_new(object, "m_rms", log_number(sqrt(state_mean(optimizer, index, STQ_FIRST_MOMENT, count))));
        json_object_set_new(object, "v_rms", log_number(sqrt(state_mean(optimizer, index, STQ_SECOND_MOMENT, count))));
    }
    return object;
}

static void add_averages(const struct optimizer *optimizer, json_t *line) {
    stq_adamw_record record;
    stq_tensor_record *tensors = calloc((size_t)optimizer->tensors, sizeof(*tensors));
    if (tensors && stq_adamw_save_records(optimizer->adamw, &record, tensors, (size_t)optimizer->tensors) == STQ_OK &&
        isfinite(record.log_n_average)) {
        json_object_set_new(line, "n_average", log_number(exp(record.log_n_average)));
        json_object_set_new(line, "r_average", log_number(exp(record.log_r_average)));
    }
    free(tensors);
}

void telemetry_add(const struct optimizer *optimizer, json_t *line) {
    json_t *list = json_array();
    for (int i = 0; i < optimizer->tensors; i++) {
        stq_tensor_info info;
        if (stq_adamw_tensor(optimizer->adamw, (size_t)i, &info) == STQ_OK) {
            json_array_append_new(list, describe(optimizer, (size_t)i, &info));
        }
    }
    json_object_set_new(line, "tensors", list);
    add_averages(optimizer, line);
}
