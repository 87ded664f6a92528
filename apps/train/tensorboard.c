#include "train/tensorboard.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void write_scalars(struct event_file *file, const struct tensorboard_step *step) {
    char speed[48];
    snprintf(speed, sizeof(speed), "speed/%s_per_second", step->unit);
    event_scalar(file, "loss/training", step->train_loss);
    event_scalar(file, "loss/validation", step->validation_loss);
    event_scalar(file, "top1/validation", step->validation_top1);
    event_scalar(file, "optimizer/learning_rate", step->learning_rate);
    event_scalar(file, "optimizer/gradient_norm", step->gradient_norm);
    event_scalar(file, speed, step->per_second);
    event_scalar(file, "states/bytes", step->state_bytes);
    event_scalar(file, "states/peak_bytes", step->peak_bytes);
    event_scalar(file, "states/bits_per_value", step->bits);
}

// Widths of every tensor with low-bit states, and how many values have which width.
static void write_widths(struct event_file *file, const struct optimizer *optimizer,
                         const struct parameter_set *parameters, struct histogram *histogram) {
    static const char *const moments[2] = {"m", "v"};
    for (int state = 0; state < 2; state++) {
        char tag[96];
        memset(histogram, 0, sizeof(*histogram));
        for (int i = 0; i < parameters->count; i++) {
            stq_tensor_info info;
            if (stq_adamw_tensor(optimizer->adamw, (size_t)i, &info) != STQ_OK) {
                continue;
            }
            const struct parameter *parameter = &parameters->list[i];
            // A shared second moment has next to no bits.
            const double bits = state ? info.v_bits > 32 ? 0 : info.v_bits : info.m_bits;
            if (info.m_bits != 32) {
                snprintf(tag, sizeof(tag), "bits_%s/%s", moments[state], info.name);
                event_scalar(file, tag, bits);
            }
            histogram_add_value(histogram, bits, (double)(parameter->rows * parameter->cols));
        }
        snprintf(tag, sizeof(tag), "bits/%s", moments[state]);
        event_histogram(file, tag, histogram);
    }
}

// With several ranks the gradients of none of them are those of the step.
static void write_values(struct event_file *file, const struct parameter_set *parameters, int with_gradients,
                         struct histogram *histogram) {
    for (int i = 0; i < parameters->count; i++) {
        const struct parameter *parameter = &parameters->list[i];
        const float *both[2] = {parameter->values, parameter->gradients};
        for (int k = 0; k < 1 + with_gradients; k++) {
            char tag[96];
            snprintf(tag, sizeof(tag), "%s/%s", k ? "gradients" : "parameters", parameter->name);
            memset(histogram, 0, sizeof(*histogram));
            histogram_add(histogram, both[k], parameter->rows * parameter->cols);
            event_histogram(file, tag, histogram);
        }
    }
}

enum app_status tensorboard_write(struct event_file *file, const struct tensorboard_step *step,
                                  const struct optimizer *optimizer, const struct parameter_set *parameters) {
    if (!file) {
        return APP_OK;
    }
    event_begin(file, step->step);
    write_scalars(file, step);
    if (step->decided || !isnan(step->validation_loss)) {
        struct histogram *histogram = malloc(sizeof(*histogram));
        if (!histogram) {
            return app_fail(APP_FAILED, "There is no memory for histograms.");
        }
        if (step->decided) {
            write_widths(file, optimizer, parameters, histogram);
        }
        write_values(file, parameters, optimizer->sharded == NULL, histogram);
        free(histogram);
    }
    return event_file_write(file);
}
