/* noise.c - the rounding noise to be expected of a saved state, from the widths of its codes' cells. */
#include <math.h>

#include "checkpoint/load.h"
#include "common/error.h"
#include "quant/codec.h"
#include "quant/shared.h"

typedef struct power {
    double signal;
    double noise;
} power;

/* Nearest rounding inside a cell of width w: w^2 / 12. */
static void add_first(power *sum, const stq_planes *planes, int64_t i) {
    uint32_t code = stq_code_get(planes, i);
    uint32_t shift = 25 - planes->bits;
    uint32_t magnitude = code & ((1u << (planes->bits - 1)) - 1);
    float scale = stq_m_scale(planes->scales[i / STQ_BLOCK]);
    double low = (double)stq_bits_float(STQ_ONE_BITS + (magnitude << shift));
    double high = (double)stq_bits_float(STQ_ONE_BITS + ((magnitude + 1) << shift));
    double value = (double)stq_m_decode(code, scale, planes->bits), width = (high - low) / 3.0 * (double)scale;
    sum->signal += value * value;
    sum->noise += width * width / 12.0;
}

/* Of the root of v, by which updates are divided. Stochastic rounding between nodes a distance w apart: w^2 / 6 on
 * average. A node has a cell on either side. */
static void add_second(power *sum, const stq_planes *planes, int64_t i) {
    stq_lattice lattice = stq_v_lattice(planes->scales[i / STQ_BLOCK], planes->bits);
    uint32_t code = stq_code_get(planes, i);
    double value = sqrt((double)stq_v_decode(code, &lattice));
    double below = code > 0 ? sqrt((double)stq_v_decode(code - 1, &lattice)) : value;
    double above = code < lattice.last ? sqrt((double)stq_v_decode(code + 1, &lattice)) : value;
    double left = value - below, right = above - value;
    sum->signal += value * value;
    sum->noise += (left * left + right * right) / 12.0;
}

static void add_planes(power *sum, const stq_planes *planes, stq_state state, int64_t count) {
    if (planes->bits == 0 || stq_is_shared(planes->bits))
        return;
    for (int64_t i = 0; i < count; i++) {
        if (planes->bits == STQ_BITS_FLOAT32) {
            double value = (double)((const float *)(const void *)planes->base)[i];
            sum->signal += state == STQ_FIRST_MOMENT ? value * value : value;
        } else if (planes->scales[i / STQ_BLOCK] != 0) {
            if (state == STQ_FIRST_MOMENT)
                add_first(sum, planes, i);
            else
                add_second(sum, planes, i);
        }
    }
}

stq_status stq_checkpoint_noise(const stq_checkpoint *c, size_t tensor, stq_state state, double *signal,
                                double *noise) {
    STQ_CHECK(stq_check_state(c, tensor, state));
    power sum = {0};
    for (size_t i = c->tensor_slices.start[tensor]; i < c->tensor_slices.start[tensor + 1]; i++) {
        const stq_slice *slice = &c->tensor_slices.list[i];
        stq_planes planes;
        stq_status status = stq_read_slice_planes(c, slice, state, &planes);
        if (status == STQ_OK)
            add_planes(&sum, &planes, state, slice->count);
        stq_release_planes(&planes);
        STQ_CHECK(status);
    }
    *signal = sum.signal;
    *noise = sum.noise;
    return STQ_OK;
}
