/*
 * test_emulated.cc - the step kernel's own source, run on the CPU warp by warp (emulated.h) and compared with the
 * scalar reference byte by byte: what a machine without a GPU can say about it.
 */
#include "emulated.h"

extern "C" {
#include "common/error.h"
#include "cuda/worklist.h"
#include "optim/coefficients.h"
#include "quant/convert.h"
#include "quant/kernels.h"
#include "quant/shared.h"
}
#include "../../src/cuda/step.cu"
#include "../../src/cuda/step_shared.cu"

dim3 threadIdx, blockIdx;
int emulated_error;

static ucontext_t scheduler, lanes[32];
static char stacks[32][1 << 16];
static bool finished[32];
static uint64_t arriving[32], arrived[2][32];
static int places[32];
static int phase_of_lane[32];

const uint64_t *emulated_exchange(uint64_t value, int place) {
    uint32_t self = threadIdx.x;
    arriving[self % 32] = value;
    places[self % 32] = place;
    swapcontext(&lanes[self % 32], &scheduler);
    threadIdx.x = self;
    return arrived[phase_of_lane[self % 32] & 1];
}

static void (*job)(void);

static void run_lane(int lane) {
    threadIdx.x = (uint32_t)lane;
    job();
    finished[lane % 32] = true;
}

static void run_warp(uint32_t warp, void (*work)(void)) {
    job = work;
    for (int i = 0; i < 32; i++) {
        getcontext(&lanes[i]);
        lanes[i].uc_stack.ss_sp = stacks[i];
        lanes[i].uc_stack.ss_size = sizeof stacks[i];
        lanes[i].uc_link = &scheduler;
        finished[i] = false;
        phase_of_lane[i] = 0;
        makecontext(&lanes[i], (void (*)(void))run_lane, 1, (int)(warp * 32) + i);
    }
    for (int phase = 0;; phase++) {
        int running = 0;
        for (int i = 0; i < 32; i++) {
            phase_of_lane[i] = phase;
            swapcontext(&scheduler, &lanes[i]);
            running += !finished[i];
        }
        if (running == 0)
            return;
        for (int i = 0; i < 32; i++)
            if (running != 32 || places[i] != places[0]) {
                printf("Bail out! lanes are apart: %d run, lane %d is at line %d, lane 0 at %d\n", running, i,
                       places[i], places[0]);
                exit(1);
            }
        memcpy(arrived[(phase + 1) & 1], arriving, sizeof arriving);
    }
}

/* ---- one launch ---- */

static struct {
    const stq_device_item *items;
    const stq_tile *tiles;
    const stq_coefficients *coefficients;
    const stq_control *control;
} launch;

static void run_kernel(void) { step_kernel(launch.items, launch.tiles, launch.coefficients, launch.control); }
static void run_shared_kernel(void) {
    step_shared_kernel(launch.items, launch.tiles, launch.coefficients, launch.control);
}

struct tensor {
    stq_item item[2]; /* kernel's and reference's */
    int64_t count;
};

struct memory {
    uint8_t *bytes[2];
    size_t size;
};

static memory blocks[64 * 32];
static int block_count;

static uint64_t random_state;
static uint32_t random_word() {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return stq_hash((uint32_t)(random_state >> 32));
}
static double uniform() { return (random_word() + 0.5) / 4294967296.0; }
static double normal() { return sqrt(-2.0 * log(uniform())) * cos(6.283185307179586 * uniform()); }

static memory *take(size_t size) {
    memory *m = &blocks[block_count++];
    m->size = size + 64;
    for (int side = 0; side < 2; side++) {
        m->bytes[side] = (uint8_t *)aligned_alloc(64, (m->size + 63) / 64 * 64);
        memset(m->bytes[side], 0xa5, m->size);
    }
    return m;
}

static bool equal() {
    for (int i = 0; i < block_count; i++)
        if (memcmp(blocks[i].bytes[0], blocks[i].bytes[1], blocks[i].size) != 0)
            return false;
    return true;
}

struct planes_memory {
    memory *nibbles, *pairs, *bit[4], *floats, *scales;
};

static planes_memory take_planes(int64_t count) {
    size_t n = (size_t)stq_block_count(count);
    planes_memory p = {take(n * 64),
                       take(n * 32),
                       {take(n * 16), take(n * 16), take(n * 16), take(n * 16)},
                       take((size_t)count * 4),
                       take(n * 2)};
    return p;
}

static stq_planes planes_at(const planes_memory &p, uint32_t bits, int side) {
    stq_planes planes = {};
    if (bits == 0)
        return planes;
    planes.bits = bits;
    if (stq_is_shared(bits)) {
        planes.base = p.floats->bytes[side];
        return planes;
    }
    planes.base = (bits == 32 ? p.floats : bits >= 4 ? p.nibbles : p.pairs)->bytes[side];
    for (uint32_t k = 1; k < stq_plane_count(bits); k++)
        planes.bit[k - 1] = p.bit[k - 1]->bytes[side];
    planes.scales = (uint16_t *)p.scales->bytes[side];
    return planes;
}

static double gradient(int kind, int64_t i, int step) {
    double g = normal() * 1e-3;
    switch (kind) {
    case 1:
        return random_word() % 10 ? 0 : g;
    case 2:
        return i % 16 == 3 ? (random_word() & 1 ? 0.0 : -0.0) : g;
    case 3:
        return ldexp(g, (int)(random_word() % 121) - 60);
    case 4:
        return ldexp(g, -100 - (int)(random_word() % 45));
    case 5:
        return ldexp(g > 0 ? 1.9 : -1.9, 60 + (int)(random_word() % 4));
    case 6:
        return step < 4 ? 0 : g;
    case 7:
        return 0.25;
    case 8:
        return i % 1000 == 17 ? g * 1e9 : g;
    default:
        return g;
    }
}

/* Means as some steps with gradients of that kind may have left them. */
static float shared_mean(int kind) {
    switch (kind) {
    case 1:
    case 6:
        return random_word() % 3 ? (float)(1e-6 * uniform()) : 0.0f;
    case 3:
        return (float)ldexp(uniform(), (int)(random_word() % 200) - 140);
    case 4:
        return (float)ldexp(uniform(), -149 + (int)(random_word() % 40));
    case 5:
        return (float)ldexp(uniform(), 120 + (int)(random_word() % 8));
    default:
        return (float)(1e-6 * (0.1 + uniform()));
    }
}

/* Steps of one tensor of every kind of gradient, first from no state; widths change in step 5. A second moment that is
 * shared has its means before the first step, and for it only m's width changes. `cols` is the length of its rows. */
static bool run_case(uint32_t m_bits, uint32_t v_bits, stq_dtype p_type, stq_dtype g_type, int kind, int64_t count,
                     int steps, double compensation, int64_t cols = 1) {
    bool shared = stq_is_shared(v_bits);
    block_count = 0;
    memory *p = take((size_t)count * stq_dtype_size(p_type)), *g = take((size_t)count * stq_dtype_size(g_type));
    planes_memory m = take_planes(count), v = take_planes(count);
    for (int64_t i = 0; i < count; i++)
        for (int side = 0, word = 0; side < 2; side++) {
            static float value;
            if (side == 0) {
                value = random_word() % 8 ? (float)(normal() * 0.05) : random_word() & 1 ? 0.0f : -0.0f;
                if (kind == 7 && i % 50 == 9)
                    value = random_word() & 1 ? 3.3961e38f : -3.4e38f; /* rounds to the largest float at most */
                word = random_word() & 0xffff;
            }
            stq_store_float(p->bytes[side], p_type, i, value, (uint32_t)word);
        }
    stq_device_item items[2] = {};
    for (int side = 0; side < 2; side++) {
        stq_item *item = &items[side].item;
        item->parameter = p->bytes[side];
        item->gradient = g->bytes[side];
        item->count = count;
        item->first_block = 77;
        item->tensor = 5;
        item->parameter_type = p_type;
        item->gradient_type = g_type;
        item->m_out = planes_at(m, m_bits, side);
        item->v_out = planes_at(v, v_bits, side);
        item->cols = cols;
        item->rows = (77 * STQ_BLOCK + count + cols - 1) / cols; /* the slice is the tensor's last part */
        if (shared)
            item->v_in = item->v_out;
    }
    for (int64_t i = 0; shared && i < count; i++) {
        float mean = shared_mean(kind);
        for (int side = 0; side < 2; side++)
            stq_shared_means(&items[side].item.v_in)[i] = mean;
    }
    stq_worklist list;
    if (stq_worklist_make(&list, &items[0].item, 1) != STQ_OK)
        return false;
    stq_adamw_group group = {1e-3, 0.9, 0.95, 1e-8, 0.1};
    stq_control control = {};
    bool same = true;
    for (int step = 1; step <= steps && same; step++) {
        for (int64_t i = 0; i < count; i++) {
            float value = (float)gradient(kind, i, step);
            for (int side = 0; side < 2; side++)
                stq_store_float(g->bytes[side], g_type, i, value, 0x8000);
        }
        for (int side = 0; side < 2 && step == 5 && m_bits != 32; side++) {
            items[side].item.m_out = planes_at(m, m_bits == 8 ? 7 : m_bits + 1, side);
            if (!shared)
                items[side].item.v_out = planes_at(v, v_bits == 2 ? 3 : v_bits - 1, side);
        }
        stq_coefficients c = stq_step_coefficients(&group, 0.7, compensation, 42, (uint64_t)step);
        items[0].kind = stq_item_kind(&items[0].item, compensation != 0);
        launch = {items, list.tiles, &c, &control};
        for (int64_t tile = 0; tile < list.tile_count; tile++)
            for (uint32_t warp = 0; warp < STQ_TILE_WARPS; warp++) {
                blockIdx.x = (uint32_t)tile;
                run_warp(warp, run_kernel);
                run_warp(warp, run_shared_kernel);
            }
        stq_reference_kernels.step(&items[1].item, &c, 0, stq_block_count(count));
        same = equal() && !(shared && step > 1 && step != 5 && p_type != STQ_FLOAT16 && compensation == 0 &&
                            cols % 8 == 0 && (items[0].kind & STQ_KIND_SHARED) == 0);
        if (!same)
            printf("# step %d differs (kind %u)\n", step, items[0].kind);
        for (int side = 0; side < 2; side++) {
            items[side].item.m_in = items[side].item.m_out;
            items[side].item.v_in = items[side].item.v_out;
        }
    }
    stq_worklist_free(&list);
    for (int i = 0; i < block_count; i++)
        for (int side = 0; side < 2; side++)
            free(blocks[i].bytes[side]);
    return same;
}

int main(int argc, char **argv) {
    int steps = argc > 1 ? atoi(argv[1]) : 8;
    int number = 0, failed = 0;
    static const struct {
        stq_dtype p, g;
    } types[] = {{STQ_BFLOAT16, STQ_BFLOAT16},
                 {STQ_FLOAT32, STQ_FLOAT32},
                 {STQ_FLOAT32, STQ_BFLOAT16},
                 {STQ_FLOAT16, STQ_FLOAT16}};
    for (uint32_t m = 2; m <= 8; m++)
        for (uint32_t v = 2; v <= 8; v++) {
            bool same = true;
            for (int kind = 0; kind < 9 && same; kind++) {
                random_state = m * 100 + v * 10 + (uint32_t)kind;
                int type = (int)(m + v + (uint32_t)kind) % 4;
                emulated_error = (int)(m + 2 * v + (uint32_t)kind) % 3 - 1;
                same = run_case(m, v, types[type].p, types[type].g, kind, 2 * 256 + 128 * (kind % 2) + 19 * (kind % 3),
                                steps, kind == 8 ? 0.5 : 0.0);
                if (!same)
                    printf("# gradient %d, types %d %d, error %d\n", kind, types[type].p, types[type].g,
                           emulated_error);
            }
            printf("%s %d - m of %u and v of %u bits as the reference\n", same ? "ok" : "not ok", ++number, m, v);
            failed += !same;
        }
    static const struct {
        const char *name;
        uint32_t m, v;
        stq_dtype p, g;
        int64_t count, cols;
    } more[] = {{"float32 states", 32, 32, STQ_BFLOAT16, STQ_FLOAT32, 300, 1},
                {"several groups of rows a warp, 5 and 5 bits", 5, 5, STQ_BFLOAT16, STQ_BFLOAT16, 20780, 1},
                {"several groups of rows a warp, 3 and 6 bits", 3, 6, STQ_FLOAT32, STQ_FLOAT32, 20480 + 256, 1},
                {"two thread blocks, 2 and 3 bits", 2, 3, STQ_FLOAT32, STQ_BFLOAT16, STQ_TILE + 3000, 1},
                {"several groups of rows a warp, 4 bits and v shared by rows", 4, STQ_BITS_SHARED_ROW, STQ_BFLOAT16,
                 STQ_BFLOAT16, 20780, 1600},
                {"two thread blocks, 5 bits and v shared by columns", 5, STQ_BITS_SHARED_COL, STQ_FLOAT32, STQ_BFLOAT16,
                 STQ_TILE + 3000, 1600}};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        random_state = 7 + i;
        emulated_error = 0;
        bool same = run_case(more[i].m, more[i].v, more[i].p, more[i].g, 0, more[i].count, 4, 0.0, more[i].cols);
        printf("%s %d - %s\n", same ? "ok" : "not ok", ++number, more[i].name);
        failed += !same;
    }
    for (uint32_t m = 2; m <= 8; m++)
        for (uint32_t v = STQ_BITS_SHARED_ROW; v <= STQ_BITS_SHARED_COL; v++) {
            static const int64_t cols[] = {8, 40, 256, 264, 1600, 20, 2056, 2048, 96};
            bool same = true;
            for (int kind = 0; kind < 9 && same; kind++) {
                random_state = m * 100 + v * 10 + (uint32_t)kind;
                int type = (int)(m + v + (uint32_t)kind) % 8 < 7 ? (int)(m + v + (uint32_t)kind) % 3 : 3;
                emulated_error = (int)(m + 2 * v + (uint32_t)kind) % 3 - 1;
                same = run_case(m, v, types[type].p, types[type].g, kind, 17 * 256 + 128 * (kind % 2) + 19 * (kind % 3),
                                steps, kind == 8 ? 0.5 : 0.0, cols[(m + (uint32_t)kind) % 9]);
                if (!same)
                    printf("# gradient %d, types %d %d, error %d, %d columns\n", kind, types[type].p, types[type].g,
                           emulated_error, (int)cols[(m + (uint32_t)kind) % 9]);
            }
            printf("%s %d - m of %u bits and v shared by %s as the reference\n", same ? "ok" : "not ok", ++number, m,
                   v == STQ_BITS_SHARED_ROW ? "rows" : "columns");
            failed += !same;
        }
    printf("1..%d\n", number);
    return failed != 0;
}
