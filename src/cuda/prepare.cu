/* prepare.cu - the few numbers of a step, made on the device so that nothing waits for the host: norm, finite check,
 * step count, coefficients. The operations are those of optim/coefficients.h, in double. */
#include "cuda/kernels.h"
#include "optim/coefficients.h"

#define THREADS 256

static __device__ double norm_of(const stq_prepare *request, double unscale) {
    if (request->norm != NULL)
        return *request->norm;
    return request->norm_supplied ? request->given_norm : sqrt(*request->sum_squares) * unscale;
}

static __global__ void __launch_bounds__(THREADS)
    prepare_kernel(stq_prepare request, const stq_device_item *items, const stq_adamw_group *groups, int64_t *missed,
                   stq_coefficients *coefficients, int64_t item_count, stq_control *control) {
    double unscale = request.loss_scale ? request.unscale / (double)*request.loss_scale : request.unscale;
    double norm = norm_of(&request, unscale);
    bool skip = !isfinite(norm) || (request.found_infinite && *request.found_infinite != 0.0f);
    int64_t step = control->steps + 1;
    double factor = unscale * stq_clip_factor(norm, request.max_gradient_norm);
    for (int64_t i = threadIdx.x; i < item_count && !skip; i += THREADS) {
        const stq_item *item = &items[i].item;
        const stq_adamw_group *group = &groups[item->group];
        coefficients[i] = stq_step_coefficients(group, factor, request.error_compensation, request.seed,
                                                (uint64_t)(step - missed[i]));
        coefficients[i].step_key = stq_step_key(request.seed, (uint64_t)step);
        if (item->gradient == NULL)
            missed[i]++;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        control->skip = skip;
        control->steps += !skip;
        control->skipped += skip;
        control->norm = norm;
    }
}

static __global__ void group_kernel(stq_adamw_group *groups, int64_t index, stq_adamw_group group) {
    groups[index] = group;
}

cudaError_t stq_cuda_prepare(const stq_prepare *request, const stq_device_item *items, const stq_adamw_group *groups,
                             int64_t *missed, stq_coefficients *coefficients, int64_t item_count, stq_control *control,
                             cudaStream_t stream) {
    prepare_kernel<<<1, THREADS, 0, stream>>>(*request, items, groups, missed, coefficients, item_count, control);
    return cudaGetLastError();
}

cudaError_t stq_cuda_set_group(stq_adamw_group *groups, int64_t index, const stq_adamw_group *group,
                               cudaStream_t stream) {
    group_kernel<<<1, 1, 0, stream>>>(groups, index, *group);
    return cudaGetLastError();
}
