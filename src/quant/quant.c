/* quant.c - the public codec calls: sizes of planes, encode and decode of whole arrays. */
#include "common/error.h"
#include "quant/codec.h"
#include "quant/kernels.h"

int64_t stq_block_count(int64_t count) { return (count + STQ_BLOCK - 1) / STQ_BLOCK; }

uint32_t stq_plane_count(uint32_t bits) {
    if (bits == STQ_BITS_FLOAT32)
        return 1;
    if (!stq_is_coded(bits))
        return 0;
    return 1 + bits - stq_base_bits(bits);
}

uint64_t stq_plane_bytes(int64_t count, uint32_t bits, uint32_t plane) {
    if (count <= 0 || plane >= stq_plane_count(bits))
        return 0;
    if (bits == STQ_BITS_FLOAT32)
        return (uint64_t)count * sizeof(float);
    uint32_t bits_in_plane = plane == 0 ? stq_base_bits(bits) : 1;
    return (uint64_t)stq_bit_plane_bytes(count) * bits_in_plane;
}

static stq_status check_planes(const stq_planes *planes, stq_state state, int64_t count, bool encode) {
    if (planes == NULL || count < 0)
        return stq_error(STQ_INVALID_ARGUMENT, "planes must not be NULL and count not negative; count is %lld.",
                         (long long)count);
    if (state != STQ_FIRST_MOMENT && state != STQ_SECOND_MOMENT)
        return stq_error(STQ_INVALID_ARGUMENT, "There is no state %d; use STQ_FIRST_MOMENT or STQ_SECOND_MOMENT.",
                         (int)state);
    if (planes->bits == 0 && !encode)
        return STQ_OK;
    if (stq_plane_count(planes->bits) == 0 || (encode && planes->bits == STQ_BITS_FLOAT32))
        return stq_error(STQ_INVALID_ARGUMENT, "A width of %u bits does not exist; use 2 to 8.", planes->bits);
    if (planes->base == NULL || (planes->scales == NULL && planes->bits != STQ_BITS_FLOAT32))
        return stq_error(STQ_INVALID_ARGUMENT, "Planes of %u bits need a base plane and scale words.", planes->bits);
    for (uint32_t plane = 1; plane < stq_plane_count(planes->bits); plane++)
        if (stq_plane(planes, plane) == NULL)
            return stq_error(STQ_INVALID_ARGUMENT, "Planes of %u bits need %u bit planes; number %u is NULL.",
                             planes->bits, stq_plane_count(planes->bits) - 1, plane);
    return STQ_OK;
}

stq_status stq_encode(const stq_planes *planes, stq_state state, const float *values, int64_t count,
                      const stq_random *random) {
    STQ_CHECK(check_planes(planes, state, count, true));
    if ((values == NULL && count > 0) || (random == NULL && state == STQ_SECOND_MOMENT))
        return stq_error(STQ_INVALID_ARGUMENT, "stq_encode needs values, and for the second moment a stq_random.");
    stq_select_kernels()->encode(planes, state, values, count, 0, stq_block_count(count), random);
    return STQ_OK;
}

stq_status stq_decode(float *values, const stq_planes *planes, stq_state state, int64_t count) {
    STQ_CHECK(check_planes(planes, state, count, false));
    if (values == NULL && count > 0)
        return stq_error(STQ_INVALID_ARGUMENT, "stq_decode needs room for %lld values.", (long long)count);
    stq_select_kernels()->decode(values, planes, state, count, 0, stq_block_count(count));
    return STQ_OK;
}
