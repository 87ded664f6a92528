/*
 * minimal.c - the library without the trainer: an optimizer over three tensors, 200 steps, and the bytes that it took.
 *
 * The "model" is its own target: the loss is half the mean squared distance to hidden values, so that its gradient is
 * the difference plus some noise, as a minibatch would add. In a real program the gradients come from a backward pass.
 */
#include <stdio.h>
#include <stdlib.h>

#include <stquant/stquant.h>

enum { TENSORS = 3, STEPS = 200 };

/* A program ends on the first failure; the library itself never prints or exits. */
static void check(stq_status status) {
    if (status != STQ_OK) {
        fprintf(stderr, "minimal: %s\n", stq_last_error());
        exit(1);
    }
}

static float *new_array(int64_t count) {
    float *array = calloc((size_t)count, sizeof *array);
    if (array == NULL) {
        fprintf(stderr, "minimal: out of memory\n");
        exit(1);
    }
    return array;
}

/* Uniform in [-1, 1), the same sequence on every machine. */
static float noise(void) {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(int32_t)state * 0x1p-31f;
}

/* Writes the gradient and returns the loss of one tensor. */
static double backward(const float *parameter, float *gradient, const float *target, int64_t count) {
    double loss = 0;
    for (int64_t i = 0; i < count; i++) {
        float difference = parameter[i] - target[i];
        gradient[i] = difference + 0.1f * noise();
        loss += 0.5 * difference * difference;
    }
    return loss / (double)count;
}

int main(void) {
    /* What is to be optimized: names and shapes. The bias is 1-D and keeps float32 states. */
    const stq_tensor tensors[TENSORS] = {
        stq_tensor_whole("embedding", 2048, 256),
        stq_tensor_whole("layer.weight", 256, 256),
        stq_tensor_whole("layer.bias", 1, 256),
    };
    float *parameters[TENSORS], *gradients[TENSORS], *targets[TENSORS];
    for (int t = 0; t < TENSORS; t++) {
        int64_t count = tensors[t].count;
        parameters[t] = new_array(count);
        gradients[t] = new_array(count);
        targets[t] = new_array(count);
        for (int64_t i = 0; i < count; i++)
            targets[t][i] = noise();
    }

    stq_adamw_group group = {.learning_rate = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0.0};
    stq_adamw_config config = stq_adamw_defaults();
    config.groups = &group;
    config.group_count = 1;
    config.seed = 1;
    config.policy.state_bits = 5.0; /* the cap: bits per state value, everything included */
    config.policy.planned_steps = STEPS;

    stq_adamw *optimizer;
    check(stq_adamw_create(&optimizer, &config, tensors, TENSORS));

    for (int step = 1; step <= STEPS; step++) {
        double loss = 0;
        for (int t = 0; t < TENSORS; t++)
            loss += backward(parameters[t], gradients[t], targets[t], tensors[t].count) / TENSORS;

        stq_step one = {.size = sizeof one,
                        .parameters = (void *const *)parameters,
                        .gradients = (const void *const *)gradients,
                        .unscale = 1.0,
                        .max_gradient_norm = 0.0};
        stq_step_result result;
        check(stq_adamw_step(optimizer, &one, &result));
        if (step == 1 || step % 50 == 0)
            printf("step %3d   loss %.5f   gradient norm %.2f\n", step, loss, result.gradient_norm);
    }

    stq_memory memory;
    check(stq_adamw_memory(optimizer, &memory));
    printf("\nstates: %llu bytes now, %llu at the peak, %.2f bits per value; float32 would take %llu\n",
           (unsigned long long)memory.state_bytes, (unsigned long long)memory.peak_bytes, memory.final_bits,
           (unsigned long long)(8 * memory.parameters));
    for (int t = 0; t < TENSORS; t++) {
        stq_tensor_info info;
        check(stq_adamw_tensor(optimizer, (size_t)t, &info));
        printf("  %-14s m in %2u bits, v in %2u bits\n", info.name, info.m_bits, info.v_bits);
    }

    stq_adamw_destroy(optimizer);
    for (int t = 0; t < TENSORS; t++) {
        free(parameters[t]);
        free(gradients[t]);
        free(targets[t]);
    }
    return 0;
}
