/*
 * qat.cu - the passes of quantization-aware training. A lane takes four neighbouring weights of every 128, and its sums
 * are the accumulators of qat/arithmetic.h: results are the CPU's bytes. Groups of up to a tile belong to a warp, short
 * ones to a part of it; a longer group has a block, whose warps take its tiles in turn.
 */
#include "cuda/exact.h"
#include "cuda/kernels.h"

#define ALL_LANES 0xffffffffu
#define THREADS 256
#define BATCH 4 /* rows of 128 weights whose loads a lane has under way at once */

namespace {

/* Four elements of which the first `valid` exist; others read as `otherwise`. */
struct float32_elements {
    static constexpr bool whole = true; /* `valid` is 0 or 4, and addresses are multiples of four elements */
    static __device__ __forceinline__ void load(float *v, const void *from, uint32_t, int64_t at, int valid, float) {
        if (valid == 0)
            return;
        float4 x = __ldcs((const float4 *)((const float *)from + at));
        v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
    }
    static __device__ __forceinline__ void store(void *to, uint32_t, int64_t at, int, const float *v) {
        *(float4 *)((float *)to + at) = make_float4(v[0], v[1], v[2], v[3]);
    }
};

struct bfloat16_elements {
    static constexpr bool whole = true;
    static __device__ __forceinline__ void load(float *v, const void *from, uint32_t, int64_t at, int valid, float) {
        if (valid == 0)
            return;
        uint2 x = __ldcs((const uint2 *)((const uint16_t *)from + at));
        v[0] = stq_bits_float(x.x << 16), v[1] = stq_bits_float(x.x & 0xffff0000u);
        v[2] = stq_bits_float(x.y << 16), v[3] = stq_bits_float(x.y & 0xffff0000u);
    }
    static __device__ __forceinline__ void store(void *to, uint32_t, int64_t at, int, const float *v) {
        uint2 x;
        x.x = stq_qat_bfloat16(v[0]) | (uint32_t)stq_qat_bfloat16(v[1]) << 16;
        x.y = stq_qat_bfloat16(v[2]) | (uint32_t)stq_qat_bfloat16(v[3]) << 16;
        *(uint2 *)((uint16_t *)to + at) = x;
    }
};

/* Any type, length and address. */
struct any_elements {
    static constexpr bool whole = false;
    static __device__ __forceinline__ void load(float *v, const void *from, uint32_t dtype, int64_t at, int valid,
                                                float otherwise) {
#pragma unroll
        for (int k = 0; k < STQ_QAT_LANE_VALUES; k++)
            v[k] = k < valid ? stq_load_float(from, dtype, at + k) : otherwise;
    }
    static __device__ __forceinline__ void store(void *to, uint32_t dtype, int64_t at, int valid, const float *v) {
#pragma unroll
        for (int k = 0; k < STQ_QAT_LANE_VALUES; k++)
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

/* Lanes of a warp for one group: as few as hold its weights in fours. */
uint32_t lanes_for(int64_t group) {
    uint32_t lanes = 1;
    while (lanes < STQ_QAT_LANES && lanes * STQ_QAT_LANE_VALUES < group)
        lanes *= 2;
    return lanes;
}

/* The run of a group that has no block of its own. */
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

/* The run of this warp in a block's group. */
static __device__ __forceinline__ run long_run(const stq_qat_pass &pass, int64_t tile) {
    run r;
    int64_t begin = tile * STQ_QAT_TILE, left = pass.group - begin;
    r.group = blockIdx.x;
    r.first = r.group * pass.group + begin;
    r.count = (int)(left < 0 ? 0 : left < STQ_QAT_TILE ? left : STQ_QAT_TILE);
    r.lane = threadIdx.x & (STQ_QAT_LANES - 1);
    r.present = true;
    return r;
}

/* v[k] = w[k] / step, rounded as a division is. `reciprocal` is 1 / step. */
static __device__ __forceinline__ void quotients(float *v, const float *w, float step, float reciprocal) {
    float low = fminf(fminf(fabsf(w[0]), fabsf(w[1])), fminf(fabsf(w[2]), fabsf(w[3])));
    float high = fmaxf(fmaxf(fabsf(w[0]), fabsf(w[1])), fmaxf(fabsf(w[2]), fabsf(w[3])));
    if (low >= 0x1p-102f && high <= 0x1p62f && step <= 0x1p60f) {
#pragma unroll
        for (int k = 0; k < STQ_QAT_LANE_VALUES; k++)
            v[k] = stq_exact_quotient(w[k], step, reciprocal);
    } else {
#pragma unroll
        for (int k = 0; k < STQ_QAT_LANE_VALUES; k++)
            v[k] = __fdiv_rn(w[k], step);
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

/* Four weights of the backward pass; `out` may be `g`. */
template <int FACTOR>
static __device__ __forceinline__ void backward_four(float *accumulators, float *out, const float *w, const float *g,
                                                     float step, float reciprocal, const stq_qat_rule &rule) {
    float v[STQ_QAT_LANE_VALUES];
    quotients(v, w, step, reciprocal);
#pragma unroll
    for (int k = 0; k < STQ_QAT_LANE_VALUES; k++) {
        float clamped = clamp(v[k], rule);
        float d = clamped - stq_qat_round(clamped);
        bool inside = clamped == v[k];
        accumulators[k] += g[k] * (inside ? -d : clamped);
        out[k] = inside ? g[k] * factor_of<FACTOR>(d, rule) : 0.0f;
    }
}

/* How many of the four weights from `at` on are in the run. */
template <class ELEMENTS> static __device__ __forceinline__ int valid_at(const run &r, int at) {
    int left = r.count - at;
    if (ELEMENTS::whole)
        return left > 0 ? STQ_QAT_LANE_VALUES : 0;
    return left < 0 ? 0 : left < STQ_QAT_LANE_VALUES ? left : STQ_QAT_LANE_VALUES;
}

/* The lane's part of a run; returns its sum. */
template <int FACTOR, class ELEMENTS>
static __device__ __forceinline__ float backward_run(void *weight_gradient, const stq_qat_pass &pass,
                                                     const void *gradient, const run &r) {
    float accumulators[STQ_QAT_LANE_VALUES] = {0.0f, 0.0f, 0.0f, 0.0f};
    float step = stq_qat_usable_step(pass.steps[r.group]), reciprocal = 1.0f / step;
    for (int row = (int)r.lane * STQ_QAT_LANE_VALUES; row < r.count; row += BATCH * STQ_QAT_ACCUMULATORS) {
        float w[BATCH][STQ_QAT_LANE_VALUES], g[BATCH][STQ_QAT_LANE_VALUES];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int at = row + i * STQ_QAT_ACCUMULATORS, valid = valid_at<ELEMENTS>(r, at);
            ELEMENTS::load(w[i], pass.weights, pass.dtype, r.first + at, valid, 1.0f);
            ELEMENTS::load(g[i], gradient, pass.dtype, r.first + at, valid, 0.0f);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int at = row + i * STQ_QAT_ACCUMULATORS, valid = valid_at<ELEMENTS>(r, at);
            if (valid > 0) {
                backward_four<FACTOR>(accumulators, g[i], w[i], g[i], step, reciprocal, pass.rule);
                ELEMENTS::store(weight_gradient, pass.dtype, r.first + at, valid, g[i]);
            }
        }
    }
    return (accumulators[0] + accumulators[1]) + (accumulators[2] + accumulators[3]);
}

/* The sum over the lanes of a group, in its first lane. Lanes that it does not have would add 0. */
static __device__ __forceinline__ float fold(float sum, uint32_t lanes) {
    for (uint32_t distance = lanes / 2; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(ALL_LANES, sum, distance);
    return sum;
}

template <int FACTOR, class ELEMENTS>
__global__ void __launch_bounds__(THREADS)
    backward_short(void *weight_gradient, float *step_gradient, const stq_qat_pass pass, const void *gradient,
                   double scale, uint32_t lanes) {
    run r = short_run(pass, lanes);
    float sum = fold(backward_run<FACTOR, ELEMENTS>(weight_gradient, pass, gradient, r), lanes);
    if (r.present && r.lane == 0)
        step_gradient[r.group] = (float)(scale * (0.0 + (double)sum));
}

template <int FACTOR, class ELEMENTS>
__global__ void __launch_bounds__(THREADS) backward_long(void *weight_gradient, float *step_gradient,
                                                         const stq_qat_pass pass, const void *gradient, double scale) {
    __shared__ float sums[THREADS / STQ_QAT_LANES];
    const int warp = (int)threadIdx.x / STQ_QAT_LANES, warps = (int)blockDim.x / STQ_QAT_LANES;
    const int64_t tiles = (pass.group + STQ_QAT_TILE - 1) / STQ_QAT_TILE;
    double total = 0.0;
    for (int64_t first = 0; first < tiles; first += warps) {
        run r = long_run(pass, first + warp);
        float sum = fold(backward_run<FACTOR, ELEMENTS>(weight_gradient, pass, gradient, r), STQ_QAT_LANES);
        __syncthreads(); /* the sums of the last round have been read */
        if (r.lane == 0)
            sums[warp] = sum;
        __syncthreads();
        for (int i = 0; threadIdx.x == 0 && i < warps && first + i < tiles; i++)
            total += (double)sums[i];
    }
    if (threadIdx.x == 0)
        step_gradient[blockIdx.x] = (float)(scale * total);
}

template <class ELEMENTS>
static __device__ __forceinline__ void forward_run(void *quantized, const stq_qat_pass &pass, const run &r) {
    float step = stq_qat_usable_step(pass.steps[r.group]), reciprocal = 1.0f / step;
    for (int row = (int)r.lane * STQ_QAT_LANE_VALUES; row < r.count; row += BATCH * STQ_QAT_ACCUMULATORS) {
        float w[BATCH][STQ_QAT_LANE_VALUES];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int at = row + i * STQ_QAT_ACCUMULATORS;
            ELEMENTS::load(w[i], pass.weights, pass.dtype, r.first + at, valid_at<ELEMENTS>(r, at), 1.0f);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int at = row + i * STQ_QAT_ACCUMULATORS, valid = valid_at<ELEMENTS>(r, at);
            if (valid == 0)
                continue;
            float v[STQ_QAT_LANE_VALUES];
            quotients(v, w[i], step, reciprocal);
#pragma unroll
            for (int k = 0; k < STQ_QAT_LANE_VALUES; k++)
                v[k] = step * (stq_qat_round(clamp(v[k], pass.rule)) + 0.0f);
            ELEMENTS::store(quantized, pass.dtype, r.first + at, valid, v);
        }
    }
}

template <class ELEMENTS>
__global__ void __launch_bounds__(THREADS) forward_short(void *quantized, const stq_qat_pass pass, uint32_t lanes) {
    forward_run<ELEMENTS>(quantized, pass, short_run(pass, lanes));
}

template <class ELEMENTS>
__global__ void __launch_bounds__(THREADS) forward_long(void *quantized, const stq_qat_pass pass) {
    const int warp = (int)threadIdx.x / STQ_QAT_LANES, warps = (int)blockDim.x / STQ_QAT_LANES;
    for (int64_t tile = warp; tile * STQ_QAT_TILE < pass.group; tile += warps)
        forward_run<ELEMENTS>(quantized, pass, long_run(pass, tile));
}

/* ---- Launches ---- */

/* Blocks and threads: of short groups as many as fit a block, of long ones a warp for each tile. */
struct shape {
    uint32_t lanes;
    unsigned blocks, threads;
    bool is_long;
};

shape shape_of(const stq_qat_pass *pass) {
    shape s = {STQ_QAT_LANES, (unsigned)pass->groups, THREADS, pass->group > STQ_QAT_TILE};
    if (s.is_long) {
        int64_t tiles = (pass->group + STQ_QAT_TILE - 1) / STQ_QAT_TILE;
        s.threads = (unsigned)(tiles < THREADS / STQ_QAT_LANES ? tiles * STQ_QAT_LANES : THREADS);
        return s;
    }
    s.lanes = lanes_for(pass->group);
    int64_t groups_of_block = THREADS / s.lanes;
    s.blocks = (unsigned)((pass->groups + groups_of_block - 1) / groups_of_block);
    return s;
}

template <class ELEMENTS> void launch_forward(void *quantized, const stq_qat_pass *pass, cudaStream_t stream) {
    const shape s = shape_of(pass);
    const stq_qat_pass copy = *pass;
    const uint32_t lanes = s.lanes, blocks = s.blocks, threads = s.threads;
    if (s.is_long)
        forward_long<ELEMENTS><<<blocks, threads, 0, stream>>>(quantized, copy);
    else
        forward_short<ELEMENTS><<<blocks, threads, 0, stream>>>(quantized, copy, lanes);
}

template <int FACTOR, class ELEMENTS>
void launch_backward(void *weight_gradient, float *step_gradient, const stq_qat_pass *pass, const void *gradient,
                     double scale, cudaStream_t stream) {
    const shape s = shape_of(pass);
    const stq_qat_pass copy = *pass;
    const uint32_t lanes = s.lanes, blocks = s.blocks, threads = s.threads;
    if (s.is_long)
        backward_long<FACTOR, ELEMENTS>
            <<<blocks, threads, 0, stream>>>(weight_gradient, step_gradient, copy, gradient, scale);
    else
        backward_short<FACTOR, ELEMENTS>
            <<<blocks, threads, 0, stream>>>(weight_gradient, step_gradient, copy, gradient, scale, lanes);
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

/* Groups that begin on four elements, in arrays that do. */
bool is_whole(const stq_qat_pass *pass, const void *second, const void *third) {
    const uintptr_t addresses = (uintptr_t)pass->weights | (uintptr_t)second | (uintptr_t)third;
    return pass->group % STQ_QAT_LANE_VALUES == 0 &&
           addresses % (STQ_QAT_LANE_VALUES * stq_dtype_size(pass->dtype)) == 0;
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
