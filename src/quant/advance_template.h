/*
 * advance_template.h - the part of kernel_template.h that makes new moments and parameters from old moments and
 * gradients, and the ranges of the new moments.
 */

/* ---- Moments and parameters ---- */

/* What a value of a moment is made from: the old one from unpacked codes, the planes of 4-bit or 5-bit codes themselves
 * or floats, a shared v from floats that are those of this step already. */
enum { NARROW_CODES, WIDE_CODES, NIBBLES, FIVES, FLOATS, SHARED };

/* How many vectors of old moments are made together, and at most. */
enum { MOST_TOGETHER = 4 };
_Static_assert(GROUP <= MOST_TOGETHER, "advance_block has room for so many");
INLINE int group_of(const int kind) {
    int group = GROUP;
    if (kind == FIVES)
        group = MOST_TOGETHER;
    return group;
}

/* What all blocks of an item share. */
typedef struct rates {
    vfloat factor, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, epsilon, minus_step;
} rates;

INLINE rates make_rates(const stq_coefficients *c) {
    return (rates){.factor = vf_all(c->gradient_factor),
                   .beta1 = vf_all(c->beta1),
                   .one_minus_beta1 = vf_all(c->one_minus_beta1),
                   .beta2 = vf_all(c->beta2),
                   .one_minus_beta2 = vf_all(c->one_minus_beta2),
                   .decay = vf_all(c->decay),
                   .epsilon = vf_all(c->epsilon),
                   .minus_step = vf_all(-c->step_size)};
}

/* What the blocks of a chunk share of the old planes: the levels of m and, where codes are looked up in the planes, the
 * first block's. */
typedef struct old_planes {
    m_levels levels;
    uint32_t m_offset;
    const uint8_t *m, *v, *m_bit, *v_bit;
} old_planes;

INLINE old_planes old_planes_of(const workspace *work, const item_plan *plan, const int m_kind) {
    old_planes planes = {.levels = load_levels(plan->m_in.levels), .m_offset = plan->m_in.offset};
    (void)work, (void)m_kind;
#if LOOKS_UP_PLANES
    const stq_planes *m_in = &plan->item->m_in, *v_in = &plan->item->v_in;
    if (m_kind == NIBBLES || m_kind == FIVES) {
        planes.levels = levels_apart(planes.levels);
        planes.m = m_in->base + work->first * (STQ_BLOCK / 2);
        planes.v = v_in->base + work->first * (STQ_BLOCK / 2);
    }
    if (m_kind == FIVES) {
        planes.m_bit = m_in->bit[0] + work->first * (STQ_BLOCK / 8);
        planes.v_bit = v_in->bit[0] + work->first * (STQ_BLOCK / 8);
    }
#endif
    return planes;
}

/* Where the old moments of a block come from. */
typedef struct old_moments {
    m_source m;
    v_source v;
    vint dead; /* the lowest level of m */
    const uint8_t *m_codes, *v_codes, *m_bit, *v_bit;
    const float *m_floats, *v_floats;
} old_moments;

INLINE void set_old_moments(old_moments *old, const workspace *work, int block, const old_planes *planes,
                            const int m_kind, const int v_kind) {
    old->dead = vi_bits(vf_all(work->m_lowest[block]));
    if (m_kind != FLOATS)
        old->m = make_m_source(work->m_scale[block], planes->levels, planes->m_offset);
    if (v_kind != FLOATS && v_kind != SHARED)
        old->v = make_v_source(work->v_low[block], work->v_shift[block], work->v_first[block]);
    old->m_codes = work->m_codes[block];
    old->v_codes = work->v_codes[block];
#if LOOKS_UP_PLANES
    if (m_kind == NIBBLES || m_kind == FIVES) {
        old->m_codes = planes->m + block * (STQ_BLOCK / 2);
        old->v_codes = planes->v + block * (STQ_BLOCK / 2);
    }
    if (m_kind == FIVES) {
        old->v = v_source_apart(&old->v);
        old->m_bit = planes->m_bit + block * (STQ_BLOCK / 8);
        old->v_bit = planes->v_bit + block * (STQ_BLOCK / 8);
    }
#endif
    old->m_floats = work->m[block];
    old->v_floats = work->v[block];
}

/* group_of vectors of m and v, from value i of the block on. */
INLINE void load_old_moments(vfloat *m, vfloat *v, const old_moments *old, int i, const int m_kind, const int v_kind) {
#if LOOKS_UP_PLANES
    if (m_kind == FIVES)
        m_of_fives(m, &old->m, old->m_codes, old->m_bit + i / 8, i);
    if (v_kind == FIVES)
        v_of_fives(v, &old->v, old->v_codes, old->v_bit + i / 8, i);
    if (m_kind == NIBBLES)
        m[0] = m_of_nibbles(&old->m, old->m_codes + i / 2);
    if (v_kind == NIBBLES)
        v[0] = v_of_nibbles(&old->v, old->v_codes + i / 2);
#endif
    if (m_kind == NARROW_CODES || m_kind == WIDE_CODES)
        m_values(m, &old->m, old->m_codes + i, m_kind == NARROW_CODES);
    if (v_kind == NARROW_CODES || v_kind == WIDE_CODES)
        v_values(v, &old->v, old->v_codes + i, v_kind == NARROW_CODES);
    for (int k = 0; k < GROUP; k++) {
        if (m_kind == FLOATS)
            m[k] = vf_load(old->m_floats + i + k * LANES);
        if (v_kind == FLOATS || v_kind == SHARED)
            v[k] = vf_load(old->v_floats + i + k * LANES);
    }
}

/* The ranges of a block out of those of its lanes: at once, or of all blocks of the chunk together. */
INLINE void keep_ranges(workspace *work, int block, vint m_largest, vint v_largest, vint v_lowest) {
#if REDUCES_CHUNKS
    vi_keep_ranges(work->ranges[block], m_largest, v_largest, v_lowest);
#else
    vi_reduce(m_largest, v_largest, v_lowest, &work->m_largest[block], &work->v_largest[block], &work->v_lowest[block]);
#endif
}

INLINE void find_ranges(workspace *work) {
#if REDUCES_CHUNKS
    _Static_assert(CHUNK == 8, "what vi_reduce_eight does");
    vi_reduce_eight(work->ranges[0], work->m_largest, work->v_largest, work->v_lowest);
#else
    (void)work;
#endif
}

#if SKIPS_NOT_A_NUMBER
static __attribute__((noinline)) void find_m_again(workspace *work) {
    for (int block = 0; block < work->blocks; block++)
        for (int i = 0; i < STQ_BLOCK; i++) {
            uint32_t bits = stq_float_bits(work->m[block][i]) & 0x7fffffffu;
            work->m_largest[block] = bits > work->m_largest[block] ? bits : work->m_largest[block];
        }
}
#endif

/* vi_larger_magnitude may pass over what is not a number, which counts as the largest. From codes m' becomes that only
 * by a scale or a gradient that is not finite, and by such a gradient v' is not finite either. */
INLINE void find_not_a_number(workspace *work) {
#if SKIPS_NOT_A_NUMBER
    vint largest = vi_larger(vi_load(work->v_largest), vi_bits(vf_load(work->m_scale)));
    if (vi_any_of_eight(largest, 0x7f800000u))
        find_m_again(work);
#else
    (void)work;
#endif
}

/* A vector of p' = decay p - step_size `ratio`. */
INLINE void advance_parameter(float *parameter, vfloat ratio, const rates *c) {
    vf_store(parameter, vf_fma(c->minus_step, ratio, vf_multiply(vf_load(parameter), c->decay)));
}

/* m' = beta1 m + (1 - beta1) g, v' = beta2 v + (1 - beta2) g^2, p' = decay p - step_size m' / (sqrt(v') + epsilon), and
 * the ranges of m' and v'. vf_decay_m takes m as 0 where it is at its lowest level and g is 0. Root, ratio and
 * parameter of a vector stand one vector apart, so that each finds its operands done: a core whose window of
 * instructions another thread shares does not reach from one vector's root to the next one's otherwise. Random numbers
 * for v's rounding are made here, where they fill the time of roots and divisions. */
INLINE void advance_block(workspace *work, int block, float *parameter, const float *gradient, const rates *c,
                          const old_moments *old, const mixer *mix, const int m_kind, const int v_kind) {
    float *m_floats = work->m[block], *v_floats = work->v[block];
    vfloat m_group[MOST_TOGETHER], v_group[MOST_TOGETHER], last_m = c->decay, root = c->decay, ratio = c->decay;
    vint m_largest = vi_all(0), v_largest = vi_all(0), v_lowest = vi_all(0);
    UNROLL
    for (int i = 0; i < STQ_BLOCK; i += LANES) {
        if (i / LANES % group_of(m_kind) == 0)
            load_old_moments(m_group, v_group, old, i, m_kind, v_kind);
        vfloat m = m_group[i / LANES % group_of(m_kind)], v = v_group[i / LANES % group_of(m_kind)];
        vfloat g = vf_multiply(vf_load(gradient + i), c->factor);
        if (v_kind != SHARED)
            v = vf_fma(c->beta2, v, vf_multiply(c->one_minus_beta2, vf_multiply(g, g)));
        m = vf_decay_m(c->beta1, m, vf_multiply(c->one_minus_beta1, g), g, old->dead);
        vf_store(m_floats + i, m);
        if (i == 0)
            m_largest = vi_magnitude(m);
        else if (m_kind == FLOATS || v_kind == SHARED)
            m_largest = vi_larger(m_largest, vi_magnitude(m));
        else
            m_largest = vi_larger_magnitude(m_largest, m);
        if (v_kind != SHARED) {
            vf_store(v_floats + i, v);
            v_largest = i == 0 ? vi_bits(v) : vi_larger(v_largest, vi_bits(v));
            v_lowest = i == 0 ? vi_bits(v) : vi_smaller(v_lowest, vi_bits(v));
        }
        if (i % (2 * LANES) == 0)
            make_words(work, block, i, mix);
        if (i >= 2 * LANES)
            advance_parameter(parameter + i - 2 * LANES, ratio, c);
        if (i >= LANES)
            ratio = vf_divide(last_m, vf_add(root, c->epsilon));
        root = vf_square_root(v);
        last_m = m;
    }
    advance_parameter(parameter + STQ_BLOCK - 2 * LANES, ratio, c);
    advance_parameter(parameter + STQ_BLOCK - LANES, vf_divide(last_m, vf_add(root, c->epsilon)), c);
    keep_ranges(work, block, m_largest, v_largest, v_lowest);
}

INLINE void advance(workspace *work, float *parameter, const float *gradient, const item_plan *plan, const int m_kind,
                    const int v_kind) {
    const rates c = make_rates(plan->coefficients);
    const old_planes planes = old_planes_of(work, plan, m_kind);
    const mixer mix = make_mixer();
    for (int block = 0; block < work->blocks; block++) {
        old_moments old;
        set_old_moments(&old, work, block, &planes, m_kind, v_kind);
        advance_block(work, block, parameter + block * STQ_BLOCK, gradient + block * STQ_BLOCK, &c, &old, &mix, m_kind,
                      v_kind);
    }
    find_ranges(work);
    if (m_kind != FLOATS && v_kind != SHARED)
        find_not_a_number(work);
}

#define DEFINE_ADVANCE(NAME, M_KIND, V_KIND)                                                                      \
    static void advance_##NAME(workspace *work, float *parameter, const float *gradient, const item_plan *plan) { \
        advance(work, parameter, gradient, plan, M_KIND, V_KIND);                                                 \
    }
DEFINE_ADVANCE(narrow_narrow, NARROW_CODES, NARROW_CODES)
DEFINE_ADVANCE(narrow_wide, NARROW_CODES, WIDE_CODES)
DEFINE_ADVANCE(wide_narrow, WIDE_CODES, NARROW_CODES)
DEFINE_ADVANCE(wide_wide, WIDE_CODES, WIDE_CODES)
DEFINE_ADVANCE(floats, FLOATS, FLOATS)
#if LOOKS_UP_PLANES
DEFINE_ADVANCE(nibbles, NIBBLES, NIBBLES)
DEFINE_ADVANCE(fives, FIVES, FIVES)
#endif
DEFINE_ADVANCE(narrow_shared, NARROW_CODES, SHARED)
DEFINE_ADVANCE(wide_shared, WIDE_CODES, SHARED)
DEFINE_ADVANCE(floats_shared, FLOATS, SHARED)

/* Indexed by whether m and v are narrow. */
static advance_stage *const advance_stages[2][2] = {{advance_wide_wide, advance_wide_narrow},
                                                    {advance_narrow_wide, advance_narrow_narrow}};
