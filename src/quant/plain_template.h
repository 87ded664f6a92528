/* plain_template.h - the part of kernel_template.h for float32 states: plain AdamW in one loop; see plain_update in
 * reference.c. */

/* One block; arrays point to its first element. */
INLINE void step_float32_block(void *parameter, const void *gradient, float *m_state, float *v_state,
                               const stq_coefficients *c, uint32_t key, const uint32_t parameter_type,
                               const uint32_t gradient_type) {
    const vfloat factor = vf_all(c->gradient_factor);
    const vfloat one_minus_beta1 = vf_all(c->one_minus_beta1), decay = vf_all(c->decay);
    const vfloat beta2 = vf_all(c->beta2), one_minus_beta2 = vf_all(c->one_minus_beta2);
    const vfloat root = vf_all(c->plain_root), epsilon = vf_all(c->plain_epsilon), minus_step = vf_all(-c->plain_step);
    const mixer mix = make_mixer();
    UNROLL
    for (int i = 0; i < STQ_BLOCK; i += 2 * LANES) {
        vint pairs = parameter_type == STQ_BFLOAT16 ? random_pairs(key, i / 2, &mix) : vi_all(0);
        for (int half = 0; half < 2; half++) {
            int at = i + half * LANES;
            vfloat g = vf_multiply(load_float(gradient, at, gradient_type), factor);
            vfloat m = vf_load(m_state + at);
            m = vf_fma(one_minus_beta1, vf_subtract(g, m), m);
            vfloat v = vf_fma(vf_multiply(one_minus_beta2, g), g, vf_multiply(beta2, vf_load(v_state + at)));
            vf_store(m_state + at, m);
            vf_store(v_state + at, v);
            vfloat p = vf_multiply(load_float(parameter, at, parameter_type), decay);
            vfloat denominator = vf_add(vf_divide(vf_square_root(v), root), epsilon);
            p = vf_add(p, vf_divide(vf_multiply(minus_step, m), denominator));
            store_parameter(parameter, at, p, parameter_type == STQ_BFLOAT16 ? vi_words(pairs, half, mix.words) : pairs,
                            parameter_type);
        }
    }
}

typedef void float32_phase(void *parameter, const void *gradient, float *m, float *v, const stq_coefficients *c,
                           uint32_t key);

#define DEFINE_FLOAT32(NAME, PARAMETER, GRADIENT)                                                                    \
    static void float32_##NAME(void *parameter, const void *gradient, float *m, float *v, const stq_coefficients *c, \
                               uint32_t key) {                                                                       \
        step_float32_block(parameter, gradient, m, v, c, key, PARAMETER, GRADIENT);                                  \
    }
DEFINE_FLOAT32(p32_g32, STQ_FLOAT32, STQ_FLOAT32)
DEFINE_FLOAT32(p32_gb16, STQ_FLOAT32, STQ_BFLOAT16)
DEFINE_FLOAT32(p32_g16, STQ_FLOAT32, STQ_FLOAT16)
DEFINE_FLOAT32(pb16_g32, STQ_BFLOAT16, STQ_FLOAT32)
DEFINE_FLOAT32(pb16_gb16, STQ_BFLOAT16, STQ_BFLOAT16)
DEFINE_FLOAT32(pb16_g16, STQ_BFLOAT16, STQ_FLOAT16)
DEFINE_FLOAT32(p16_g32, STQ_FLOAT16, STQ_FLOAT32)
DEFINE_FLOAT32(p16_gb16, STQ_FLOAT16, STQ_BFLOAT16)
DEFINE_FLOAT32(p16_g16, STQ_FLOAT16, STQ_FLOAT16)

static float32_phase *const float32_phases[3][3] = {{float32_p32_g32, float32_p32_gb16, float32_p32_g16},
                                                    {float32_pb16_g32, float32_pb16_gb16, float32_pb16_g16},
                                                    {float32_p16_g32, float32_p16_gb16, float32_p16_g16}};

static void step_float32_partial(float32_phase *phase, void *parameter, const void *gradient, float *m, float *v,
                                 const stq_item *item, const stq_coefficients *c, uint32_t key, int count) {
    _Alignas(64) uint8_t p[STQ_BLOCK * sizeof(float)] = {0}, g[STQ_BLOCK * sizeof(float)] = {0};
    _Alignas(64) float m_room[STQ_BLOCK] = {0}, v_room[STQ_BLOCK] = {0};
    size_t values = (size_t)count;
    memcpy(p, parameter, values * stq_dtype_size(item->parameter_type));
    memcpy(g, gradient, values * stq_dtype_size(item->gradient_type));
    memcpy(m_room, m, values * sizeof *m);
    memcpy(v_room, v, values * sizeof *v);
    phase(p, g, m_room, v_room, c, key);
    memcpy(parameter, p, values * stq_dtype_size(item->parameter_type));
    memcpy(m, m_room, values * sizeof *m);
    memcpy(v, v_room, values * sizeof *v);
}

/* What a float32 state held before, where it will be updated. */
static void bring_float32(float *to, const stq_planes *in, int64_t first, int count) {
    if (in->bits == 0)
        memset(to, 0, (size_t)count * sizeof *to);
    else if ((float *)(void *)in->base + first != to)
        memcpy(to, (float *)(void *)in->base + first, (size_t)count * sizeof *to);
}

static __attribute__((noinline)) void step_float32(const stq_item *item, const stq_coefficients *c, int64_t first_block,
                                                   int64_t end_block) {
    float32_phase *phase = float32_phases[item->parameter_type][item->gradient_type];
    int64_t parameter_size = (int64_t)stq_dtype_size(item->parameter_type);
    int64_t gradient_size = (int64_t)stq_dtype_size(item->gradient_type);
    for (int64_t block = first_block; block < end_block; block++) {
        int64_t first = block * STQ_BLOCK;
        uint8_t *p = (uint8_t *)item->parameter + first * parameter_size;
        const uint8_t *g = (const uint8_t *)item->gradient + first * gradient_size;
        float *m = (float *)(void *)item->m_out.base + first, *v = (float *)(void *)item->v_out.base + first;
        int count = item->count - first < STQ_BLOCK ? (int)(item->count - first) : STQ_BLOCK;
        bring_float32(m, &item->m_in, first, count);
        bring_float32(v, &item->v_in, first, count);
        uint32_t key =
            item->parameter_type == STQ_BFLOAT16
                ? stq_block_key(c->step_key, item->tensor, (uint32_t)(item->first_block + block), STQ_STREAM_PARAMETER)
                : 0;
        if (count == STQ_BLOCK)
            phase(p, g, m, v, c, key);
        else
            step_float32_partial(phase, p, g, m, v, item, c, key, count);
    }
}
