/*
 * test_optimizer.c - whole optimizers, one on the CPU and one on the GPU, given the same gradients: the same digests,
 * parameters, widths, counts and bytes after every step. Prints TAP; exit status 77 without a GPU.
 *
 * usage: test_optimizer [--quick] [WORD | -WORD]   only the runs with WORD in their name, or without it; --quick, for
 * compute-sanitizer, has smaller tensors and fewer and shorter runs, in which all kernels are launched nevertheless
 */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "fixture.h"
#include "quant/convert.h"
#include <stquant/adamw.h>

enum { TENSORS = 7 };

enum { QUICK_CAP = 130000, QUICK_TIGHT_CAP = 140000 };

/* An emulated GPU takes its time: runs there end after the third decision, which comes at step 21 and up to 5 steps
 * late, unless STQUANT_LONG is set. */
#ifdef EMULATED_CUDA_RUNTIME_API_H
enum { LARGE = 256, CAP = 450000, TIGHT_CAP = 360000, LATE_STEPS = 34, EMULATED = true };
#else
enum { LARGE = 1024, CAP = 1000000, TIGHT_CAP = 640000, LATE_STEPS = 60, EMULATED = false };
#endif
enum { EMULATED_STEPS = 27, QUICK_STEPS = 6 };

typedef struct shape {
    const char *name;
    int64_t rows, cols;
    stq_dtype parameter_type, gradient_type;
} shape;

static const shape usual[TENSORS] = {
    {"embedding", 300, 96, STQ_BFLOAT16, STQ_BFLOAT16}, {"gain", 1, 96, STQ_BFLOAT16, STQ_BFLOAT16},
    {"attention", 288, 96, STQ_FLOAT32, STQ_FLOAT32},   {"wide", 64, 1031, STQ_FLOAT32, STQ_BFLOAT16},
    {"tall", 2111, 40, STQ_BFLOAT16, STQ_FLOAT32},      {"half", 100, 100, STQ_FLOAT16, STQ_FLOAT16},
    {"large", LARGE, 640, STQ_BFLOAT16, STQ_BFLOAT16}};

/* For --quick: still two segments and three tiles of the large one. */
static const shape small[TENSORS] = {
    {"embedding", 70, 96, STQ_BFLOAT16, STQ_BFLOAT16}, {"gain", 1, 96, STQ_BFLOAT16, STQ_BFLOAT16},
    {"attention", 96, 96, STQ_FLOAT32, STQ_FLOAT32},   {"wide", 8, 1031, STQ_FLOAT32, STQ_BFLOAT16},
    {"tall", 211, 40, STQ_BFLOAT16, STQ_FLOAT32},      {"half", 50, 100, STQ_FLOAT16, STQ_FLOAT16},
    {"large", 110, 640, STQ_BFLOAT16, STQ_BFLOAT16}};

/* Rows of several pieces, columns of several chunks. */
static const shape long_rows[TENSORS] = {
    {"rows", 21, 6400, STQ_BFLOAT16, STQ_BFLOAT16},           {"gain", 1, 96, STQ_BFLOAT16, STQ_BFLOAT16},
    {"columns", 37, 2056, STQ_FLOAT32, STQ_FLOAT32},          {"odd", 8, 1031, STQ_FLOAT32, STQ_BFLOAT16},
    {"float32 rows", 33, 1608, STQ_BFLOAT16, STQ_FLOAT32},    {"half", 50, 100, STQ_FLOAT16, STQ_FLOAT16},
    {"bfloat16 columns", 83, 1600, STQ_FLOAT32, STQ_BFLOAT16}};

static const shape *shapes = usual;

/* Counts what it hands out, to see memory come back. */
typedef struct counting {
    uint64_t bytes, peak;
    int allocations;
} counting;

static void *counted_allocate(void *context, size_t bytes) {
    counting *c = context;
    void *pointer = NULL;
    if (cudaMalloc(&pointer, bytes) != cudaSuccess)
        return NULL;
    c->bytes += bytes;
    c->peak = c->bytes > c->peak ? c->bytes : c->peak;
    c->allocations++;
    return pointer;
}

static void counted_release(void *context, void *pointer, size_t bytes) {
    counting *c = context;
    CUDA(cudaFree(pointer));
    c->bytes -= bytes;
    c->allocations--;
}

/* Only runs with this in their name are made; or, where it is left out, the others. */
static const char *chosen;
static bool left_out;
static bool quick;
static int most_steps; /* of a run */

static bool is_chosen(const char *name) { return (strstr(name, chosen) != NULL) != left_out; }

/* What the tensors of a run are like besides their shapes. */
static int compare_every = 4;         /* steps: comparing waits for the device */
static bool share_given;              /* some second moments are shared, as the tensors say */
static bool level_rows;               /* gradients of a row are of one size, and after step 40 no longer */
static int shared_first, shared_then; /* most second moments that were shared at once, and at the end */

/* Both optimizers and their arrays. */
typedef struct pair {
    stq_adamw *cpu, *gpu;
    uint8_t *parameter[TENSORS], *gradient[TENSORS];
    uint8_t *device_parameter[TENSORS], *device_gradient[TENSORS];
    size_t parameter_bytes[TENSORS], gradient_bytes[TENSORS];
    uint64_t random;
    bool counts_alike; /* bytes are the same, too, and with them the records that checkpoints save */
} pair;

static void open_pair(pair *p, stq_adamw_config config, const stq_allocator *allocator) {
    stq_tensor tensors[TENSORS];
    memset(p, 0, sizeof *p);
    p->random = 77;
    p->counts_alike = config.counts_as_cpu;
    for (int i = 0; i < TENSORS; i++) {
        tensors[i] = stq_tensor_whole(shapes[i].name, shapes[i].rows, shapes[i].cols);
        tensors[i].parameter_type = shapes[i].parameter_type;
        tensors[i].gradient_type = shapes[i].gradient_type;
        if (share_given && i % 2 == 0)
            tensors[i].v_bits = i % 4 ? STQ_BITS_SHARED_COL : STQ_BITS_SHARED_ROW;
        if (share_given && i % 2 == 0)
            tensors[i].m_bits = 3 + (uint32_t)i / 2;
        int64_t count = tensors[i].count;
        p->parameter_bytes[i] = (size_t)count * stq_dtype_size(shapes[i].parameter_type);
        p->gradient_bytes[i] = (size_t)count * stq_dtype_size(shapes[i].gradient_type);
        p->parameter[i] = malloc(p->parameter_bytes[i]);
        p->gradient[i] = malloc(p->gradient_bytes[i]);
        CUDA(cudaMalloc((void **)&p->device_parameter[i], p->parameter_bytes[i]));
        CUDA(cudaMalloc((void **)&p->device_gradient[i], p->gradient_bytes[i]));
        for (int64_t k = 0; k < count; k++)
            stq_store_float(p->parameter[i], shapes[i].parameter_type, k, (float)random_normal(&p->random) * 0.05f,
                            0x8000u);
        CUDA(cudaMemcpy(p->device_parameter[i], p->parameter[i], p->parameter_bytes[i], cudaMemcpyHostToDevice));
    }
    must(stq_adamw_create(&p->cpu, &config, tensors, TENSORS));
    stq_memory cpu, gpu;
    must(stq_adamw_memory(p->cpu, &cpu));
    config.device = STQ_DEVICE_CUDA;
    config.allocator = allocator;
    must(stq_adamw_plan(&config, tensors, TENSORS, &gpu));
    /* The GPU's lists are charged to its cap: give it as much more as they take. */
    if (config.policy.cap_bytes != 0)
        config.policy.cap_bytes += gpu.smallest_bytes - cpu.smallest_bytes;
    must(stq_adamw_create(&p->gpu, &config, tensors, TENSORS));
}

static void close_pair(pair *p) {
    stq_adamw_destroy(p->cpu);
    stq_adamw_destroy(p->gpu);
    for (int i = 0; i < TENSORS; i++) {
        free(p->parameter[i]);
        free(p->gradient[i]);
        CUDA(cudaFree(p->device_parameter[i]));
        CUDA(cudaFree(p->device_gradient[i]));
    }
}

static void draw(pair *p, int step) {
    for (int i = 0; i < TENSORS; i++) {
        double scale = ldexp(1e-3, -i) * (1.0 + 0.5 * sin(step * 0.3 + i));
        for (int64_t k = 0; k < shapes[i].rows * shapes[i].cols; k++) {
            double g = random_normal(&p->random) * scale * (1.0 + (double)(k / shapes[i].cols % 7));
            if (level_rows)
                g = scale * (step <= 40 ? (k % 2 ? 1.0 : -1.0) : (double)(k % 13 == step % 3) * (double)(k % 17));
            if (step == (quick ? 5 : 21) && k % 1009 == 5)
                g *= 3000; /* far above what the means let expect */
            stq_store_float(p->gradient[i], shapes[i].gradient_type, k, (float)g, 0x8000u);
        }
        CUDA(cudaMemcpy(p->device_gradient[i], p->gradient[i], p->gradient_bytes[i], cudaMemcpyHostToDevice));
    }
}

static void make_infinite(pair *p, int tensor) {
    stq_store_float(p->gradient[tensor], shapes[tensor].gradient_type, 5, INFINITY, 0);
    CUDA(
        cudaMemcpy(p->device_gradient[tensor], p->gradient[tensor], p->gradient_bytes[tensor], cudaMemcpyHostToDevice));
}

/* One step of both; `ask` wants the result, which makes the GPU wait. */
static bool step_pair(pair *p, stq_step step, int missing, bool ask) {
    const void *gradients[TENSORS], *device_gradients[TENSORS];
    void *parameters[TENSORS], *device_parameters[TENSORS];
    for (int i = 0; i < TENSORS; i++) {
        parameters[i] = p->parameter[i];
        device_parameters[i] = p->device_parameter[i];
        gradients[i] = i == missing ? NULL : p->gradient[i];
        device_gradients[i] = i == missing ? NULL : p->device_gradient[i];
    }
    stq_step_result on_cpu, on_gpu;
    step.size = sizeof step;
    step.parameters = parameters;
    step.gradients = gradients;
    must(stq_adamw_step(p->cpu, &step, &on_cpu));
    step.parameters = device_parameters;
    step.gradients = device_gradients;
    must(stq_adamw_step(p->gpu, &step, ask ? &on_gpu : NULL));
    if (!ask)
        return true;
    bool norm = on_cpu.gradient_norm == on_gpu.gradient_norm || !isfinite(on_cpu.gradient_norm);
    return norm && on_cpu.skipped == on_gpu.skipped && on_cpu.decided == on_gpu.decided;
}

/* Bytes, and all that a checkpoint has of an optimizer besides its buffers. */
static bool same_records(const pair *p) {
    stq_adamw_record record[2];
    stq_tensor_record tensors[2][TENSORS];
    stq_memory memory[2];
    memset(record, 0, sizeof record);
    memset(tensors, 0, sizeof tensors);
    for (int i = 0; i < 2; i++) {
        must(stq_adamw_save_records(i ? p->gpu : p->cpu, &record[i], tensors[i], TENSORS));
        must(stq_adamw_memory(i ? p->gpu : p->cpu, &memory[i]));
    }
    return memcmp(&record[0], &record[1], sizeof *record) == 0 &&
           memcmp(tensors[0], tensors[1], sizeof *tensors) == 0 && memory[0].state_bytes == memory[1].state_bytes &&
           memory[0].peak_bytes == memory[1].peak_bytes && memory[0].peak_bytes <= memory[0].cap_bytes;
}

/* Widths, counts, states and parameters. */
static bool same(const pair *p, char *text, size_t size) {
    static uint8_t copy[1 << 21];
    if (stq_adamw_step_count(p->cpu) != stq_adamw_step_count(p->gpu) ||
        stq_adamw_skipped_count(p->cpu) != stq_adamw_skipped_count(p->gpu)) {
        snprintf(text, size, "steps %lld and %lld", (long long)stq_adamw_step_count(p->cpu),
                 (long long)stq_adamw_step_count(p->gpu));
        return false;
    }
    for (int i = 0; i < TENSORS; i++) {
        stq_tensor_info cpu, gpu;
        must(stq_adamw_tensor(p->cpu, (size_t)i, &cpu));
        must(stq_adamw_tensor(p->gpu, (size_t)i, &gpu));
        if (cpu.m_bits != gpu.m_bits || cpu.v_bits != gpu.v_bits || cpu.zone != gpu.zone ||
            memcmp(&cpu.factors, &gpu.factors, sizeof cpu.factors) != 0) {
            snprintf(text, size, "%s: widths %u/%u and %u/%u, n %.17g and %.17g, r %.17g and %.17g", shapes[i].name,
                     cpu.m_bits, cpu.v_bits, gpu.m_bits, gpu.v_bits, cpu.factors.n, gpu.factors.n, cpu.factors.r,
                     gpu.factors.r);
            return false;
        }
        CUDA(cudaMemcpy(copy, p->device_parameter[i], p->parameter_bytes[i], cudaMemcpyDeviceToHost));
        if (memcmp(copy, p->parameter[i], p->parameter_bytes[i]) != 0) {
            snprintf(text, size, "parameters of %s", shapes[i].name);
            return false;
        }
    }
    if (p->counts_alike && !same_records(p)) {
        snprintf(text, size, "records or bytes");
        return false;
    }
    uint64_t cpu, gpu;
    must(stq_adamw_digest(p->cpu, &cpu));
    must(stq_adamw_digest(p->gpu, &gpu));
    snprintf(text, size, "digests %016llx and %016llx", (unsigned long long)cpu, (unsigned long long)gpu);
    return cpu == gpu;
}

static void count_shared(const pair *p) {
    shared_then = 0;
    for (size_t i = 0; i < TENSORS; i++) {
        stq_tensor_info info;
        must(stq_adamw_tensor(p->gpu, i, &info));
        shared_then += info.v_bits == STQ_BITS_SHARED_ROW || info.v_bits == STQ_BITS_SHARED_COL;
    }
    shared_first = shared_then > shared_first ? shared_then : shared_first;
}

/* Everything that a step can be asked for, by turns. */
static void run(const char *name, stq_adamw_config config, const stq_allocator *allocator, int steps, bool ask) {
    static pair p;
    char text[300] = "";
    if (!is_chosen(name))
        return;
    open_pair(&p, config, allocator);
    bool equal = true;
    int step = 1;
    steps = steps > most_steps ? most_steps : steps;
    for (; step <= steps && equal; step++) {
        stq_step s = {.unscale = step % 3 ? 1.0 : 0.25, .max_gradient_norm = step % 2 ? 1.0 : 0.0};
        draw(&p, step);
        if (step % 13 == 4)
            make_infinite(&p, step % TENSORS);
        if (step % 5 == 0) {
            s.norm_supplied = true;
            s.gradient_norm = step % 10 ? 0.75 : 40.0;
        }
        if (step == (quick ? 4 : 20)) {
            stq_adamw_group group = {
                .learning_rate = 5e-4, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.05};
            must(stq_adamw_set_group(p.cpu, 0, &group));
            must(stq_adamw_set_group(p.gpu, 0, &group));
        }
        if (step % 13 == 4 && s.norm_supplied)
            s.norm_supplied = false;
        equal = step_pair(&p, s, step % 6 == 3 ? 2 : -1, ask);
        if (equal && (ask || step % compare_every == 0 || step == steps))
            equal = same(&p, text, sizeof text);
        else if (!equal)
            snprintf(text, sizeof text, "the results of the step");
        count_shared(&p);
    }
    report(equal, "%s, %d steps%s%s", name, step - 1, equal ? "" : ": ", equal ? "" : text);
    close_pair(&p);
}

/* A captured step, replayed: the device counts the steps itself. */
static void run_graph(const char *name, stq_adamw_config config) {
    static pair p;
    char text[300] = "";
    enum { BEFORE = 3 };
    const int replays = quick ? 4 : 9;
    if (!is_chosen(name))
        return;
    open_pair(&p, config, NULL);
    cudaStream_t stream;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    stq_step s = {.unscale = 1.0, .max_gradient_norm = 1.0, .stream = stream};
    for (int step = 1; step <= BEFORE; step++) {
        draw(&p, step);
        step_pair(&p, s, -1, false);
        CUDA(cudaStreamSynchronize(stream));
    }
    void *parameters[TENSORS];
    const void *gradients[TENSORS];
    for (int i = 0; i < TENSORS; i++) {
        parameters[i] = p.device_parameter[i];
        gradients[i] = p.device_gradient[i];
    }
    s.size = sizeof s;
    s.parameters = parameters;
    s.gradients = gradients;
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    must(stq_adamw_step(p.gpu, &s, NULL));
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&replay, graph, 0));
    bool equal = true;
    for (int step = BEFORE + 1; step <= BEFORE + replays && equal; step++) {
        draw(&p, step);
        if (step == BEFORE + 4)
            make_infinite(&p, 2);
        CUDA(cudaGraphLaunch(replay, stream));
        CUDA(cudaStreamSynchronize(stream));
        for (int i = 0; i < TENSORS; i++) {
            parameters[i] = p.parameter[i];
            gradients[i] = p.gradient[i];
        }
        must(stq_adamw_step(p.cpu, &s, NULL));
        equal = same(&p, text, sizeof text);
    }
    report(equal, "%s, captured into a graph, %d replays%s%s", name, replays, equal ? "" : ": ", equal ? "" : text);
    CUDA(cudaGraphExecDestroy(replay));
    CUDA(cudaGraphDestroy(graph));
    close_pair(&p);
    CUDA(cudaStreamDestroy(stream));
}

/* What works on the optimizer's device between steps, one call at a time. */
static void work_on_device(stq_adamw *optimizer, int call) {
    static stq_adamw_record record;
    static stq_tensor_record tensors[TENSORS];
    const stq_adamw_group group = {.learning_rate = 0.1, .beta2 = 0.9, .epsilon = 1e-8};
    float value;
    if (call == 0)
        must(stq_adamw_set_group(optimizer, 0, &group));
    else if (call == 1)
        must(stq_adamw_read_state(optimizer, 0, STQ_FIRST_MOMENT, &value, 0, 1));
    else if (call == 2)
        must(stq_adamw_save_records(optimizer, &record, tensors, TENSORS)); /* waits for steps in flight */
    else
        must(stq_adamw_restore(optimizer, &record, tensors, TENSORS)); /* other planes */
}

/* The optimizer's device is worked on, whatever device the thread used last. */
static void come_from_another_device(stq_adamw_config config) {
    const char *name = "calls from another device";
    enum { CALLS = 4 };
    int devices = 0, right = 0;
    pair p;
    CUDA(cudaGetDeviceCount(&devices));
    if (devices < 2 || !is_chosen(name))
        return;
    open_pair(&p, config, NULL);
    draw(&p, 1);
    bool equal = step_pair(&p, (stq_step){.unscale = 1.0}, -1, false);
    for (int call = 0; call < CALLS; call++) {
        int device = -1;
        CUDA(cudaSetDevice(1));
        work_on_device(p.gpu, call);
        CUDA(cudaGetDevice(&device));
        right += device == 0;
    }
    report(equal && right == CALLS, "%s: %d of %d come to the optimizer's", name, right, CALLS);
    CUDA(cudaSetDevice(1));
    stq_adamw_destroy(p.gpu);
    p.gpu = NULL;
    CUDA(cudaSetDevice(0));
    close_pair(&p);
}

int main(int argc, char **argv) {
    quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
    shapes = quick ? small : usual;
    chosen = argc > 1 + quick ? argv[1 + quick] : "";
    left_out = *chosen == '-';
    chosen += left_out;
    most_steps = quick ? QUICK_STEPS : EMULATED && !getenv("STQUANT_LONG") ? EMULATED_STEPS : INT_MAX;
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("1..0 # SKIP no GPU\n");
        return 77;
    }
    stq_adamw_config config = stq_adamw_defaults();
    config.seed = 11;
    config.policy.kind = STQ_POLICY_FIXED;
    config.policy.fixed_m_bits = 5;
    config.policy.fixed_v_bits = 4;
    run("fixed widths, steps in flight", config, NULL, 60, false);
    run("fixed widths, each result asked for", config, NULL, 30, true);
    run_graph("fixed widths", config);
    come_from_another_device(config);
    config.error_compensation = 0.5;
    run("error compensation", config, NULL, 12, false);
    config.error_compensation = 0.0;
    config.policy.kind = STQ_POLICY_FLOAT32;
    run("float32 states", config, NULL, 12, false);

    counting counted = {0};
    stq_allocator allocator = {
        .context = &counted, .allocate = counted_allocate, .release = counted_release, .granularity = 64};
    config.policy.kind = STQ_POLICY_FIXED;
    share_given = true;
    run("shared second moments, given", config, NULL, 40, false);
    run_graph("shared second moments", config);
    if (!quick) {
        shapes = long_rows;
        run("shared second moments of long rows", config, NULL, 24, false);
        shapes = usual;
    }
    share_given = false;

    config.policy.kind = STQ_POLICY_ZONES;
    config.policy.cap_bytes = quick ? QUICK_CAP : CAP;
    config.policy.decide_every = 7;
    config.counts_as_cpu = true;
    run("zones with decisions, bytes counted as on a CPU", config, NULL, 40, false);
    config.counts_as_cpu = false;
    run("zones with decisions, steps in flight", config, &allocator, 60, false);
    run("zones with decisions, each result asked for", config, &allocator, 40, true);
    static const int delays[] = {1, 2, 5};
    for (int i = 0; i < 3 && (i < 1 || !quick); i++) {
        char name[80];
        config.policy.decision_delay = delays[i];
        config.policy.decide_every = i == 1 ? 2 : 7;
        compare_every = 1000;
        snprintf(name, sizeof name, "decisions %d steps late, steps in flight", delays[i]);
        run(name, config, &allocator, LATE_STEPS, false);
        if (quick)
            break;
        compare_every = 3;
        snprintf(name, sizeof name, "decisions %d steps late, looked at in between", delays[i]);
        run(name, config, &allocator, 34, false);
        snprintf(name, sizeof name, "decisions %d steps late, each result asked for", delays[i]);
        run(name, config, &allocator, 34, true);
    }
    compare_every = 4;
    config.policy.decision_delay = 2;
    config.policy.kind = STQ_POLICY_RATE_DISTORTION;
    config.policy.shared_v = STQ_SHARED_AUTO;
    config.policy.cap_bytes = quick ? QUICK_TIGHT_CAP : TIGHT_CAP;
    config.policy.decide_every = 5;
    level_rows = true;
    most_steps = quick ? 12 : INT_MAX; /* the second decision's; all that it takes to take back */
    run("shared second moments, chosen and taken back", config, &allocator, 75, false);
    if (is_chosen("shared second moments, chosen and taken back"))
        report(shared_first > 1 && (quick || shared_then < shared_first),
               "%d second moments shared at once, %d at the end", shared_first, shared_then);
    report(counted.allocations == 0 && counted.bytes == 0 && (counted.peak > 0 || *chosen),
           "all memory came back (peak %llu bytes)", (unsigned long long)counted.peak);
    printf("# %d failed\n", failures());
    return failures() ? 1 : 0;
}
