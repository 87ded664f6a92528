/*
 * qat.cu - the passes of quantization-aware training. A lane takes four or eight neighbouring weights of every 128, 16
 * bytes, and its sums are accumulators of qat/arithmetic.h: results are the CPU's bytes. The lanes that hold 128
 * weights are a team: a warp, or half of one. Groups of up to a tile belong to a team, short ones to a part of it; a
 * longer group has several teams of a block, which take its tiles in turn.
 */
#include "cuda/exact.h"
#include "cuda/kernels.h"
#include "cuda/words.h"

#define ALL_LANES 0xffffffffu
#define THREADS 256
#define BATCH 2 /* rows of 128 weights whose loads a lane has under way at once */
/* Blocks of the backward pass that a multiprocessor shall have room for: together they have enough under way. Measured
 * beside BATCH 4 with 3 blocks and with no bound: docs/qat.md. */
#define BACKWARD_BLOCKS 4

namespace {

/* Two floats as bfloat16, to nearest; they must not round beyond the largest finite number. */
static __device__ __forceinline__ uint32_t pack_finite(float low, float high) {
#ifdef __CUDACC__
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return stq_qat_bfloat16(low) | (uint32_t)stq_qat_bfloat16(high) << 16;
#endif
}

static __device__ __forceinline__ uint32_t pack(float low, float high) {
    return stq_qat_bfloat16(low) | (uint32_t)stq_qat_bfloat16(high) << 16;
}

/*
 * Neighbouring elements of a lane, as they are in memory. `valid` tells how many of them exist; where `whole`, all or
 * none do, and addresses are multiples of 16 bytes. Of several such, can_hurry() tells by a few instructions whether
 * all weights are from 2^-63 to 2 in magnitude (exact quotients need no other check), and gradients below 2 (so that no
 * factor carries them beyond bfloat16's range). It may say no without need.
 */
struct float32_elements {
    static constexpr bool whole = true;
    static constexpr int values = 4;
    static constexpr int lanes = STQ_QAT_ACCUMULATORS / values; /* of a team */
    float4 x;
    __device__ __forceinline__ void load(const void *from, uint32_t, int64_t at, int valid, float) {
        if (valid > 0)
            x = __ldcs((const float4 *)((const float *)from + at));
    }
    __device__ __forceinline__ void get(float *v) const { v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w; }
    static __device__ __forceinline__ bool can_hurry(const float32_elements &w, const float32_elements *) {
        const uint32_t both = (stq_float_bits(w.x.x) ^ 0x40000000u) & (stq_float_bits(w.x.y) ^ 0x40000000u) &
                              (stq_float_bits(w.x.z) ^ 0x40000000u) & (stq_float_bits(w.x.w) ^ 0x40000000u);
        return (both & 0x60000000u) == 0x60000000u;
    }
    template <bool FINITE>
    static __device__ __forceinline__ void store(void *to, uint32_t, int64_t at, int, const float *v) {
        *(float4 *)((float *)to + at) = make_float4(v[0], v[1], v[2], v[3]);
    }
};

struct bfloat16_elements {
    static constexpr bool whole = true;
    static constexpr int values = 8;
    static constexpr int lanes = STQ_QAT_ACCUMULATORS / values; /* of a team */
    uint4 x;
    __device__ __forceinline__ void load(const void *from, uint32_t, int64_t at, int valid, float) {
        if (valid > 0)
            x = __ldcs((const uint4 *)((const uint16_t *)from + at));
    }
    __device__ __forceinline__ void get(float *v) const {
        const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
        stq_pairs_values(v, pairs);
    }
    static __device__ __forceinline__ bool can_hurry(const bfloat16_elements &w, const bfloat16_elements *g) {
        const uint32_t both =
            (w.x.x ^ 0x40004000u) & (w.x.y ^ 0x40004000u) & (w.x.z ^ 0x40004000u) & (w.x.w ^ 0x40004000u) & 0x60006000u;
        const uint32_t either = g ? (g->x.x | g->x.y | g->x.z | g->x.w) & 0x40004000u : 0;
        return (both ^ 0x60006000u | either) == 0;
    }
    template <bool FINITE>
    static __device__ __forceinline__ void store(void *to, uint32_t, int64_t at, int, const float *v) {
        uint32_t words[4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            words[k] = FINITE ? pack_finite(v[2 * k], v[2 * k + 1]) : pack(v[2 * k], v[2 * k + 1]);
        *(uint4 *)((uint16_t *)to + at) = make_uint4(words[0], words[1], words[2], words[3]);
    }
};

/* Any type, length and address. */
struct any_elements {
    static constexpr bool whole = false;
    static constexpr int values = 4;
    static constexpr int lanes = STQ_QAT_ACCUMULATORS / values; /* of a team */
    float x[values];
    __device__ __forceinline__ void load(const void *from, uint32_t dtype, int64_t at, int valid, float otherwise) {
#pragma unroll
        for (int k = 0; k < values; k++)
            x[k] = k < valid ? stq_load_float(from, dtype, at + k) : otherwise;
    }
    __device__ __forceinline__ void get(float *v) const {
#pragma unroll
        for (int k = 0; k < values; k++)
            v[k] = x[k];
    }
    static __device__ __forceinline__ bool can_hurry(const any_elements &, const any_elements *) { return false; }
    template <bool FINITE>
    static __device__ __forceinline__ void store(void *to, uint32_t dtype, int64_t at, int valid, const float *v) {
#pragma unroll
        for (int k = 0; k < values; k++)
            if (k < valid)
                stq_store_float(to, dtype, at + k, v[k], 0x7fffu + (stq_float_bits(v[k]) >> 16 & 1));
    }
};

/* What a lane works on: the weights from `first` on, `count` of them, of the group `group`. */
struct run {
    int64_t group, first;
    int count;
    uint32_t lane;
    bool present;
};

/* How groups are spread over blocks. Short groups: `lanes` of a team each. Long ones: `span` teams each, which is a
 * power of two or all of a block's. */
struct shape {
    uint32_t lanes, span;
    unsigned blocks;
    bool is_long;
};

/* The run of a group that has no more than a tile. */
static __device__ __forceinline__ run short_run(const stq_qat_pass &pass, uint32_t lanes) {
    run r;
    r.group = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / lanes;
    r.present = r.group < pass.groups;
    r.group = r.present ? r.group : 0;
    r.first = r.group * pass.group;
    r.count = r.present ? (int)pass.group : 0;
    r.lane = threadIdx.x & (lanes - 1);
    return r;
}

/* The run of a team of `lanes` in a group that has `span` of them, the first of which is at tile `tile`. */
static __device__ __forceinline__ run long_run(const stq_qat_pass &pass, uint32_t lanes, uint32_t span, int64_t tile) {
    run r;
    const uint32_t team = threadIdx.x / lanes, teams = THREADS / lanes;
    int64_t begin = (tile + team % span) * STQ_QAT_TILE, left = pass.group - begin;
    r.group = (int64_t)blockIdx.x * (teams / span) + team / span;
    r.present = r.group < pass.groups;
    r.group = r.present ? r.group : 0;
    r.first = r.group * pass.group + begin;
    r.count = (int)(!r.present || left < 0 ? 0 : left < STQ_QAT_TILE ? left : STQ_QAT_TILE);
    r.lane = threadIdx.x & (lanes - 1);
    return r;
}

/* A group's step, and what divides by it. */
struct divisor {
    float step, reciprocal;
    bool near; /* the step is at most 2^60 */
};

static __device__ __forceinline__ divisor divisor_of(float step) {
    divisor d;
    d.step = stq_qat_usable_step(step);
    d.reciprocal = 1.0f / d.step;
    d.near = d.step <= 0x1p60f;
    return d;
}

/* v[k] = w[k] / step, rounded as a division is, for four weights. */
static __device__ __forceinline__ void any_quotients(float *v, const float *w, const divisor &by) {
    float low = fminf(fminf(fabsf(w[0]), fabsf(w[1])), fminf(fabsf(w[2]), fabsf(w[3])));
    float high = fmaxf(fmaxf(fabsf(w[0]), fabsf(w[1])), fmaxf(fabsf(w[2]), fabsf(w[3])));
    if (low >= 0x1p-102f && high <= 0x1p62f && by.near) {
#pragma unroll
        for (int k = 0; k < 4; k++)
            v[k] = stq_exact_quotient(w[k], by.step, by.reciprocal);
    } else {
#pragma unroll
        for (int k = 0; k < 4; k++)
            v[k] = __fdiv_rn(w[k], by.step);
    }
}

/* The same of VALUES weights; HURRIES: they are in range. */
template <bool HURRIES, int VALUES>
static __device__ __forceinline__ void quotients(float *v, const float *w, const divisor &by) {
#pragma unroll
    for (int k = 0; k < VALUES; k += HURRIES ? 1 : 4) {
        if (HURRIES)
            v[k] = stq_exact_quotient(w[k], by.step, by.reciprocal);
        else
            any_quotients(v + k, w + k, by);
    }
}

/* stq_qat_clamp() by two instructions: a NaN becomes the lowest code here too. */
static __device__ __forceinline__ float clamp(float v, const stq_qat_rule &rule) {
    return fminf(fmaxf(v, rule.lowest), rule.highest);
}

template <int FACTOR> static __device__ __forceinline__ float factor_of(float d, const stq_qat_rule &rule) {
    if (FACTOR == STQ_QAT_POLYNOMIAL)
        return stq_qat_polynomial_factor(d, &rule);
    if (FACTOR == STQ_QAT_HARMONICS)
        return stq_qat_harmonics_factor(d, &rule, rule.harmonics);
    if (FACTOR == STQ_QAT_EXPONENTIAL)
        return stq_qat_exponential_factor(d, &rule);
    return 1.0f;
}

/* A lane's weights of one row of the backward pass. */
template <int FACTOR, bool HURRIES, class ELEMENTS>
static __device__ __forceinline__ void backward_row(float *accumulators, float *out, const ELEMENTS &weights,
                                                    const ELEMENTS &gradient, const divisor &by,
                                                    const stq_qat_rule &rule) {
    constexpr int values = ELEMENTS::values;
    float v[values], w[values], g[values];
    weights.get(w);
    gradient.get(g);
    quotients<HURRIES, values>(v, w, by);
#pragma unroll
    for (int k = 0; k < values; k++) {
        float clamped = clamp(v[k], rule);
        float d = clamped - stq_qat_round(clamped);
        bool inside = clamped == v[k];
        float factored = g[k] * factor_of<FACTOR>(d, rule); /* of all weights: a branch would cost more */
        accumulators[k] += g[k] * (inside ? -d : clamped);
        out[k] = inside ? factored : 0.0f;
    }
}

/* How many of a lane's weights from `at` on are in the run. */
template <class ELEMENTS> static __device__ __forceinline__ int valid_at(const run &r, int at) {
    int left = r.count - at;
    if (ELEMENTS::whole)
        return left > 0 ? ELEMENTS::values : 0;
    return left < 0 ? 0 : left < ELEMENTS::values ? left : ELEMENTS::values;
}

/* Loads BATCH rows of an array, from weight `row` of the run on. */
template <class ELEMENTS>
static __device__ __forceinline__ void load_batch(ELEMENTS *rows, const void *array, uint32_t dtype, const run &r,
                                                  int row, float otherwise) {
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        int at = row + i * STQ_QAT_ACCUMULATORS;
        rows[i].load(array, dtype, r.first + at, valid_at<ELEMENTS>(r, at), otherwise);
    }
}

/* The sum over the lanes of a group, in its first lane, of what VALUES accumulators of each have. Lanes that it does
 * not have would add 0. Eight accumulators are those of two neighbours of arithmetic.h, whose sums meet in the last
 * step. */
template <int VALUES> static __device__ __forceinline__ float fold(const float *accumulators, uint32_t lanes) {
    float sums[VALUES / 4];
#pragma unroll
    for (int k = 0; k < VALUES / 4; k++) {
        const float *own = accumulators + 4 * k;
        sums[k] = (own[0] + own[1]) + (own[2] + own[3]);
    }
    for (uint32_t distance = lanes / 2; distance > 0; distance /= 2) {
#pragma unroll
        for (int k = 0; k < VALUES / 4; k++) {
            float own = sums[k];
            sums[k] = own + __shfl_xor_sync(ALL_LANES, own, distance);
        }
    }
    return VALUES == 4 ? sums[0] : sums[0] + sums[VALUES / 4 - 1];
}

/* Whether all rows of a batch that are there can take the short way; `g` may be NULL. */
template <class ELEMENTS>
static __device__ __forceinline__ bool batch_hurries(const ELEMENTS *w, const ELEMENTS *g, const divisor &by,
                                                     const run &r, int row) {
    bool all = by.near;
#pragma unroll
    for (int i = 0; i < BATCH; i++)
        all = all && (valid_at<ELEMENTS>(r, row + i * STQ_QAT_ACCUMULATORS) == 0 ||
                      ELEMENTS::can_hurry(w[i], g ? g + i : nullptr));
    return all;
}

/* One row of the backward pass, if it is there: the lane's weights from number `at` of the run on. */
template <int FACTOR, bool HURRIES, class ELEMENTS>
static __device__ __forceinline__ void finish_backward(float *accumulators, void *weight_gradient,
                                                       const stq_qat_pass &pass, const ELEMENTS &w, const ELEMENTS &g,
                                                       const divisor &by, const run &r, int at) {
    const int valid = valid_at<ELEMENTS>(r, at);
    float out[ELEMENTS::values];
    if (valid == 0)
        return;
    backward_row<FACTOR, HURRIES>(accumulators, out, w, g, by, pass.rule);
    ELEMENTS::template store<HURRIES>(weight_gradient, pass.dtype, r.first + at, valid, out);
}

/* A team's part of a group, or all of it; returns the sum over `lanes` of it. The long way is a loop that loads again,
 * so that the short one has the registers. */
template <int FACTOR, class ELEMENTS>
static __device__ __forceinline__ float backward_run(void *weight_gradient, const stq_qat_pass &pass,
                                                     const void *gradient, const run &r, uint32_t lanes) {
    constexpr int values = ELEMENTS::values;
    float accumulators[values] = {};
    ELEMENTS w[BATCH], g[BATCH];
    int row = (int)r.lane * values;
    load_batch(w, pass.weights, pass.dtype, r, row, 1.0f);
    load_batch(g, gradient, pass.dtype, r, row, 0.0f);
    const divisor by = divisor_of(pass.steps[r.group]);
    while (row < r.count) {
        if (!ELEMENTS::whole || batch_hurries(w, g, by, r, row)) {
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                finish_backward<FACTOR, ELEMENTS::whole>(accumulators, weight_gradient, pass, w[i], g[i], by, r,
                                                         row + i * STQ_QAT_ACCUMULATORS);
        } else {
#pragma unroll 1
            for (int at = row; at < row + BATCH * STQ_QAT_ACCUMULATORS; at += STQ_QAT_ACCUMULATORS) {
                ELEMENTS weights, gradients;
                weights.load(pass.weights, pass.dtype, r.first + at, valid_at<ELEMENTS>(r, at), 1.0f);
                gradients.load(gradient, pass.dtype, r.first + at, valid_at<ELEMENTS>(r, at), 0.0f);
                finish_backward<FACTOR, false>(accumulators, weight_gradient, pass, weights, gradients, by, r, at);
            }
        }
        row += BATCH * STQ_QAT_ACCUMULATORS;
        load_batch(w, pass.weights, pass.dtype, r, row, 1.0f);
        load_batch(g, gradient, pass.dtype, r, row, 0.0f);
    }
    return fold<values>(accumulators, lanes);
}

template <int FACTOR, class ELEMENTS>
__global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS)
    backward_short(void *weight_gradient, float *step_gradient, const stq_qat_pass pass, const void *gradient,
                   double scale, uint32_t lanes) {
    const run r = short_run(pass, lanes);
    float sum = backward_run<FACTOR, ELEMENTS>(weight_gradient, pass, gradient, r, lanes);
    if (r.present && r.lane == 0)
        step_gradient[r.group] = (float)(scale * (0.0 + (double)sum));
}

template <int FACTOR, class ELEMENTS>
__global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS)
    backward_long(void *weight_gradient, float *step_gradient, const stq_qat_pass pass, const void *gradient,
                  double scale, uint32_t span) {
    constexpr uint32_t lanes = ELEMENTS::lanes;
    __shared__ float sums[THREADS / lanes];
    __shared__ double totals[THREADS / lanes];
    const int tiles = (int)((pass.group + STQ_QAT_TILE - 1) / STQ_QAT_TILE);
#pragma unroll 1
    for (int first = 0; first < tiles; first += (int)span) {
        const uint32_t team = threadIdx.x / lanes;
        const run r = long_run(pass, lanes, span, first);
        float sum = backward_run<FACTOR, ELEMENTS>(weight_gradient, pass, gradient, r, lanes);
        __syncthreads(); /* the sums of the last round have been read */
        if (r.lane == 0)
            sums[team] = sum;
        __syncthreads();
        if (r.lane != 0 || team % span != 0)
            continue;
        double total = first == 0 ? 0.0 : totals[team];
        for (int i = 0; i < (int)span && first + i < tiles; i++)
            total += (double)sums[team + (uint32_t)i];
        totals[team] = total;
        if (r.present && first + (int)span >= tiles)
            step_gradient[r.group] = (float)(scale * total);
    }
}

template <bool HURRIES, class ELEMENTS>
static __device__ __forceinline__ void forward_row(float *out, const ELEMENTS &weights, const divisor &by,
                                                   const stq_qat_rule &rule) {
    constexpr int values = ELEMENTS::values;
    float v[values], w[values];
    weights.get(w);
    quotients<HURRIES, values>(v, w, by);
#pragma unroll
    for (int k = 0; k < values; k++)
        out[k] = by.step * (stq_qat_round(clamp(v[k], rule)) + 0.0f);
}

template <bool HURRIES, class ELEMENTS>
static __device__ __forceinline__ void finish_forward(void *quantized, const stq_qat_pass &pass, const ELEMENTS &w,
                                                      const divisor &by, const run &r, int at) {
    const int valid = valid_at<ELEMENTS>(r, at);
    float out[ELEMENTS::values];
    if (valid == 0)
        return;
    forward_row<HURRIES>(out, w, by, pass.rule);
    ELEMENTS::template store<HURRIES>(quantized, pass.dtype, r.first + at, valid, out);
}

template <class ELEMENTS>
static __device__ __forceinline__ void forward_run(void *quantized, const stq_qat_pass &pass, const run &r) {
    ELEMENTS w[BATCH];
    int row = (int)r.lane * ELEMENTS::values;
    load_batch(w, pass.weights, pass.dtype, r, row, 1.0f);
    const divisor by = divisor_of(pass.steps[r.group]);
    while (row < r.count) {
        if (!ELEMENTS::whole || batch_hurries(w, (const ELEMENTS *)nullptr, by, r, row)) {
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                finish_forward<ELEMENTS::whole>(quantized, pass, w[i], by, r, row + i * STQ_QAT_ACCUMULATORS);
        } else {
#pragma unroll 1
            for (int at = row; at < row + BATCH * STQ_QAT_ACCUMULATORS; at += STQ_QAT_ACCUMULATORS) {
                ELEMENTS weights;
                weights.load(pass.weights, pass.dtype, r.first + at, valid_at<ELEMENTS>(r, at), 1.0f);
                finish_forward<false>(quantized, pass, weights, by, r, at);
            }
        }
        row += BATCH * STQ_QAT_ACCUMULATORS;
        load_batch(w, pass.weights, pass.dtype, r, row, 1.0f);
    }
}

template <class ELEMENTS>
__global__ void __launch_bounds__(THREADS) forward_short(void *quantized, const stq_qat_pass pass, uint32_t lanes) {
    forward_run<ELEMENTS>(quantized, pass, short_run(pass, lanes));
}

template <class ELEMENTS>
__global__ void __launch_bounds__(THREADS) forward_long(void *quantized, const stq_qat_pass pass, uint32_t span) {
    for (int64_t tile = 0; tile * STQ_QAT_TILE < pass.group; tile += span)
        forward_run<ELEMENTS>(quantized, pass, long_run(pass, ELEMENTS::lanes, span, tile));
}

/* ---- Launches ---- */

uint32_t power_of_two_from(int64_t least, uint32_t most) {
    uint32_t power = 1;
    while (power < most && power < least)
        power *= 2;
    return power;
}

template <class ELEMENTS> shape shape_of(const stq_qat_pass *pass) {
    const uint32_t team = ELEMENTS::lanes;
    shape s = {};
    s.is_long = pass->group > STQ_QAT_TILE;
    s.lanes = power_of_two_from((pass->group + ELEMENTS::values - 1) / ELEMENTS::values, team);
    s.span = power_of_two_from((pass->group + STQ_QAT_TILE - 1) / STQ_QAT_TILE, THREADS / team);
    const int64_t of_block = s.is_long ? THREADS / (team * s.span) : THREADS / s.lanes;
    s.blocks = (unsigned)((pass->groups + of_block - 1) / of_block);
    return s;
}

template <class ELEMENTS> void launch_forward(void *quantized, const stq_qat_pass *pass, cudaStream_t stream) {
    const shape s = shape_of<ELEMENTS>(pass);
    const stq_qat_pass copy = *pass;
    const uint32_t lanes = s.lanes, span = s.span, blocks = s.blocks;
    if (s.is_long)
        forward_long<ELEMENTS><<<blocks, THREADS, 0, stream>>>(quantized, copy, span);
    else
        forward_short<ELEMENTS><<<blocks, THREADS, 0, stream>>>(quantized, copy, lanes);
}

template <int FACTOR, class ELEMENTS>
void launch_backward(void *weight_gradient, float *step_gradient, const stq_qat_pass *pass, const void *gradient,
                     double scale, cudaStream_t stream) {
    const shape s = shape_of<ELEMENTS>(pass);
    const stq_qat_pass copy = *pass;
    const uint32_t lanes = s.lanes, span = s.span, blocks = s.blocks;
    if (s.is_long)
        backward_long<FACTOR, ELEMENTS>
            <<<blocks, THREADS, 0, stream>>>(weight_gradient, step_gradient, copy, gradient, scale, span);
    else
        backward_short<FACTOR, ELEMENTS>
            <<<blocks, THREADS, 0, stream>>>(weight_gradient, step_gradient, copy, gradient, scale, lanes);
}

template <class ELEMENTS>
void choose_backward(void *weight_gradient, float *step_gradient, const stq_qat_pass *pass, const void *gradient,
                     double scale, cudaStream_t stream) {
    switch (pass->rule.factor) {
    case STQ_QAT_ONE:
        return launch_backward<STQ_QAT_ONE, ELEMENTS>(weight_gradient, step_gradient, pass, gradient, scale, stream);
    case STQ_QAT_POLYNOMIAL:
        return launch_backward<STQ_QAT_POLYNOMIAL, ELEMENTS>(weight_gradient, step_gradient, pass, gradient, scale,
                                                             stream);
    case STQ_QAT_HARMONICS:
        return launch_backward<STQ_QAT_HARMONICS, ELEMENTS>(weight_gradient, step_gradient, pass, gradient, scale,
                                                            stream);
    default:
        return launch_backward<STQ_QAT_EXPONENTIAL, ELEMENTS>(weight_gradient, step_gradient, pass, gradient, scale,
                                                              stream);
    }
}

/* Groups that begin on multiples of 16 bytes, in arrays that do. */
bool is_whole(const stq_qat_pass *pass, const void *second, const void *third) {
    const uintptr_t addresses = (uintptr_t)pass->weights | (uintptr_t)second | (uintptr_t)third;
    return pass->group * (int64_t)stq_dtype_size(pass->dtype) % 16 == 0 && addresses % 16 == 0;
}

} // namespace

extern "C" cudaError_t stq_cuda_launch_qat_forward(void *quantized, const stq_qat_pass *pass, cudaStream_t stream) {
    const bool whole = is_whole(pass, quantized, quantized);
    if (whole && pass->dtype == STQ_FLOAT32)
        launch_forward<float32_elements>(quantized, pass, stream);
    else if (whole && pass->dtype == STQ_BFLOAT16)
        launch_forward<bfloat16_elements>(quantized, pass, stream);
    else
        launch_forward<any_elements>(quantized, pass, stream);
    return cudaGetLastError();
}

extern "C" cudaError_t stq_cuda_launch_qat_backward(void *weight_gradient, float *step_gradient,
                                                    const stq_qat_pass *pass, const void *gradient, double scale,
                                                    cudaStream_t stream) {
    const bool whole = is_whole(pass, weight_gradient, gradient);
    if (whole && pass->dtype == STQ_FLOAT32)
        choose_backward<float32_elements>(weight_gradient, step_gradient, pass, gradient, scale, stream);
    else if (whole && pass->dtype == STQ_BFLOAT16)
        choose_backward<bfloat16_elements>(weight_gradient, step_gradient, pass, gradient, scale, stream);
    else
        choose_backward<any_elements>(weight_gradient, step_gradient, pass, gradient, scale, stream);
    return cudaGetLastError();
}
