/*
 * kernel_template.h - the one body of the fast kernels, included once by the file of each instruction set
 * (x86/avx512.c, x86/avx2.c, arm/neon.c) after it has defined its vector layer. The results are those of reference.c,
 * byte for byte: the same IEEE operations in the same order; only the integer work in between is arranged differently,
 * and says why that is the same.
 *
 * A block of 128 values passes through phases that hand it on in a workspace of the level-1 cache: decode m, decode v,
 * new moments, encode m, encode v, new parameters. Each phase is compiled once per width or dtype and chosen once per
 * item, so that 7 + 7 decoders and 7 + 7 encoders serve all pairs of widths, transitions included. Processors execute
 * the independent phases of neighbouring blocks side by side: the slow square roots and divisions run while the next
 * block is decoded.
 *
 * The vector layer:
 *   LANES, vfloat, vint   a vector of LANES floats or 32-bit integers
 *   vf_..., vi_...        arithmetic on them, named after what it does
 *   pack, unpack          between 128 codes of one byte each and the planes of a block
 *   decode_m_codes, decode_v_codes   codes to values; portable ones are in decode_template.h
 *   store_sign_codes, store_third_bytes   the last step of encoding: four vectors to 4 LANES code bytes
 *   first_fitting_shift   of the eight lattices of a width the first that covers a block
 */

/* What the phases of one block hand on. */
typedef struct workspace {
    _Alignas(64) float m[STQ_BLOCK];
    _Alignas(64) float v[STQ_BLOCK];
    uint32_t dead_bits; /* bits of the lowest level of m_in; those of a NaN where there is none */
    uint32_t m_largest; /* bits of the largest magnitude of m */
    uint32_t v_largest; /* largest and smallest bits of v; 0 counts */
    uint32_t v_lowest;
    bool padded; /* zeros follow the block's values: they keep code 0 and do not count as values */
} workspace;

typedef void decode_phase(float *to, const stq_planes *planes, int64_t block, int count, const float *levels);
typedef void moments_phase(workspace *work, const void *gradient, const stq_coefficients *coefficients);
typedef void encode_phase(const workspace *work, const stq_planes *planes, int64_t block, int count, uint32_t key);
typedef void parameter_phase(const workspace *work, void *parameter, const stq_coefficients *coefficients,
                             const float *coded, uint32_t key);

/* The phases chosen for one item and what they share. */
typedef struct item_plan {
    const stq_item *item;
    const stq_coefficients *coefficients;
    decode_phase *decode_m, *decode_v, *decode_m_out;
    moments_phase *moments;
    encode_phase *encode_m, *encode_v;
    parameter_phase *parameters;
    bool shared;              /* v_in holds means, already those of this step */
    float levels[STQ_LEVELS]; /* of m_in, see fill_levels */
    float levels_out[STQ_LEVELS];
} item_plan;

/* ---- Random numbers ---- */

/* LANES pairs of random words, number `first` and up. The last line of stq_random_pair and its first two are as there.
 */
INLINE vint random_pairs(uint32_t key, int first) {
    vint x = vi_xor(vi_all(key), vi_multiply(vi_add(vi_lane_numbers(), vi_all((uint32_t)first)), vi_all(0x2545f491u)));
    x = vi_multiply(x, vi_all(0x7feb352du));
    x = vi_xor(x, vi_shift_right(x, 15));
    x = vi_multiply(x, vi_all(0x846ca68bu));
    return vi_xor(x, vi_shift_right(x, 16));
}

INLINE vint hash(vint x) {
    x = vi_xor(x, vi_shift_right(x, 16));
    x = vi_multiply(x, vi_all(0x7feb352du));
    x = vi_xor(x, vi_shift_right(x, 15));
    x = vi_multiply(x, vi_all(0x846ca68bu));
    return vi_xor(x, vi_shift_right(x, 16));
}

/* ---- Decoding ---- */

/* The levels of all codes below 32 of a width of m, relative to the scale, with sign; widths above 5 bits have their
 * magnitudes alone. */
static void fill_levels(float *levels, uint32_t bits) {
    for (uint32_t code = 0; code < STQ_LEVELS && bits >= 2 && bits <= 8; code++) {
        uint32_t magnitude = bits > 5 ? code : code & ((1u << (bits - 1)) - 1);
        float level = stq_m_level(magnitude, bits);
        levels[code] = bits <= 5 && (code >> (bits - 1) & 1) != 0 ? -level : level;
    }
}

INLINE void decode_m(float *to, const stq_planes *planes, int64_t block, const float *levels, const uint32_t bits) {
    _Alignas(64) uint8_t codes[STQ_BLOCK];
    unpack(codes, planes, block, bits);
    decode_m_codes(to, codes, stq_m_scale(planes->scales[block]), levels, bits);
}

INLINE void decode_v(float *to, const stq_planes *planes, int64_t block, const uint32_t bits) {
    _Alignas(64) uint8_t codes[STQ_BLOCK];
    unpack(codes, planes, block, bits);
    stq_lattice lattice = stq_v_lattice(planes->scales[block], bits);
    decode_v_codes(to, codes, lattice.low, lattice.shift, lattice.first, bits);
}

#define DEFINE_DECODERS(BITS)                                                                                         \
    static void decode_m_##BITS(float *to, const stq_planes *planes, int64_t block, int count, const float *levels) { \
        (void)count;                                                                                                  \
        decode_m(to, planes, block, levels, BITS);                                                                    \
    }                                                                                                                 \
    static void decode_v_##BITS(float *to, const stq_planes *planes, int64_t block, int count, const float *levels) { \
        (void)count, (void)levels;                                                                                    \
        decode_v(to, planes, block, BITS);                                                                            \
    }
DEFINE_DECODERS(2)
DEFINE_DECODERS(3)
DEFINE_DECODERS(4)
DEFINE_DECODERS(5)
DEFINE_DECODERS(6)
DEFINE_DECODERS(7)
DEFINE_DECODERS(8)

static void decode_zeros(float *to, const stq_planes *planes, int64_t block, int count, const float *levels) {
    (void)planes, (void)block, (void)count, (void)levels;
    memset(to, 0, STQ_BLOCK * sizeof *to);
}

static void decode_float32(float *to, const stq_planes *planes, int64_t block, int count, const float *levels) {
    (void)levels;
    memcpy(to, (const float *)(const void *)planes->base + block * STQ_BLOCK, (size_t)count * sizeof *to);
    memset(to + count, 0, (size_t)(STQ_BLOCK - count) * sizeof *to);
}

/* Tables of phases are indexed by width, float32 at 1. */
static uint32_t width_index(uint32_t bits) { return bits == STQ_BITS_FLOAT32 ? 1 : bits; }

static decode_phase *const m_decoders[] = {decode_zeros, decode_float32, decode_m_2, decode_m_3, decode_m_4,
                                           decode_m_5,   decode_m_6,     decode_m_7, decode_m_8};
static decode_phase *const v_decoders[] = {decode_zeros, decode_float32, decode_v_2, decode_v_3, decode_v_4,
                                           decode_v_5,   decode_v_6,     decode_v_7, decode_v_8};

/* ---- New moments ---- */

INLINE vfloat load_float(const void *array, int index, const uint32_t dtype) {
    if (dtype == STQ_BFLOAT16)
        return vf_load_bfloat16((const uint16_t *)array + index);
    if (dtype == STQ_FLOAT16)
        return vf_load_float16((const uint16_t *)array + index);
    return vf_load((const float *)array + index);
}

/* m' = beta1 m + (1 - beta1) g, v' = beta2 v + (1 - beta2) g^2 and their ranges. vf_decay_m takes m as 0 where it is at
 * its lowest level and g is 0. */
INLINE void moments(workspace *work, const void *gradient, const stq_coefficients *c, const uint32_t dtype) {
    const vfloat factor = vf_all(c->gradient_factor);
    const vfloat beta1 = vf_all(c->beta1), one_minus_beta1 = vf_all(c->one_minus_beta1);
    const vfloat beta2 = vf_all(c->beta2), one_minus_beta2 = vf_all(c->one_minus_beta2);
    const vint dead = vi_all(work->dead_bits);
    vint m_largest = vi_all(0), v_largest = vi_all(0), v_lowest = vi_all(UINT32_MAX);
    UNROLL
    for (int i = 0; i < STQ_BLOCK; i += LANES) {
        vfloat g = vf_multiply(load_float(gradient, i, dtype), factor);
        vfloat m = vf_decay_m(beta1, vf_load(work->m + i), vf_multiply(one_minus_beta1, g), g, dead);
        vfloat v = vf_fma(beta2, vf_load(work->v + i), vf_multiply(one_minus_beta2, vf_multiply(g, g)));
        vf_store(work->m + i, m);
        vf_store(work->v + i, v);
        m_largest = vi_larger(m_largest, vi_magnitude(m));
        v_largest = vi_larger(v_largest, vi_bits(v));
        v_lowest = vi_smaller(v_lowest, vi_bits(v));
    }
    vi_reduce(m_largest, v_largest, v_lowest, &work->m_largest, &work->v_largest, &work->v_lowest);
}

#define DEFINE_MOMENTS(NAME, DTYPE)                                                                           \
    static void moments_##NAME(workspace *work, const void *gradient, const stq_coefficients *coefficients) { \
        moments(work, gradient, coefficients, DTYPE);                                                         \
    }
DEFINE_MOMENTS(float32, STQ_FLOAT32)
DEFINE_MOMENTS(bfloat16, STQ_BFLOAT16)
DEFINE_MOMENTS(float16, STQ_FLOAT16)

static moments_phase *const moments_phases[] = {moments_float32, moments_bfloat16, moments_float16};

/* ---- Encoding the first moment ---- */

/* Code bytes with the sign in bit 7 and the magnitude below it. fma(m, inverse, +-1) is +-t: rounding is symmetric.
 * Only `careful` blocks need the prescale, or have a t that rounds to 4, past the last level. */
INLINE void quantise_m(uint8_t *codes, const float *m, float inverse, float prescale, const bool careful) {
    const vfloat inverses = vf_all(inverse), scales = vf_all(prescale), one = vf_all(1.0f);
    UNROLL
    for (int i = 0; i < STQ_BLOCK; i += 4 * LANES) {
        vfloat t[4];
        for (int k = 0; k < 4; k++) {
            vfloat x = vf_load(m + i + k * LANES);
            if (careful)
                x = vf_multiply(x, scales);
            t[k] = vf_fma(x, inverses, vf_copy_sign(one, x));
            if (careful)
                t[k] = vf_limit_magnitude(t[k], vf_all(0x1.fffffep+1f));
        }
        store_sign_codes(codes + i, t[0], t[1], t[2], t[3]);
    }
}

INLINE void encode_m(const float *m, uint32_t largest, const stq_planes *planes, int64_t block, const uint32_t bits) {
    _Alignas(64) uint8_t codes[STQ_BLOCK];
    uint32_t word = stq_m_scale_word(largest);
    float inverse = stq_m_inverse(word);
    float prescale = stq_m_prescale(word);
    if (prescale == 1.0f && fmaf(stq_bits_float(largest), inverse, 1.0f) < 4.0f)
        quantise_m(codes, m, inverse, 1.0f, false);
    else
        quantise_m(codes, m, inverse, prescale, true);
    planes->scales[block] = (uint16_t)word;
    pack(planes, block, codes, bits, 8 - bits);
}

/* ---- Encoding the second moment ---- */

/* The usual case: cells of at most an octave. With s = shift - 16 the reference's (offset + (word shifted to the cell's
 * width)) >> shift is ((offset >> s) + word) >> 16, because the bits below s of the offset meet zeros of the shifted
 * word; with s < 0 both are shifted left. `low` is a multiple of the cell, so that it can be taken off afterwards, from
 * the codes. Above 5 bits s may be negative: everything is moved up by bits - 5 first, which overflows bits that the
 * code does not reach. `general` blocks have values that are 0 or lie below the lattice's floor. */
INLINE void quantise_v(uint8_t *codes, const float *v, const stq_lattice *lattice, uint32_t key, const uint32_t bits,
                       const bool general) {
    const int up = bits > 5 ? (int)bits - 5 : 0;
    const vcount down = vi_count((int)lattice->shift - 16 + up);
    const vint floor_bits = vi_all(lattice->low + (lattice->first << lattice->shift));
    const uint32_t low_code = lattice->low >> lattice->shift & 0xff;
    UNROLL
    for (int i = 0; i < STQ_BLOCK; i += 4 * LANES) {
        vint x[4];
        for (int k = 0; k < 4; k += 2) {
            vint pairs = random_pairs(key, (i + k * LANES) / 2);
            for (int half = 0; half < 2; half++) {
                vint value = vi_bits(vf_load(v + i + (k + half) * LANES));
                vint raised = general ? vi_larger(value, floor_bits) : value;
                if (up > 0)
                    raised = vi_shift_left(raised, up);
                raised = vi_add(vi_shift_right_by(raised, down), vi_words(pairs, half));
                x[k + half] = general ? vi_where_zero(value, vi_all(low_code << 16), raised) : raised;
            }
        }
        store_third_bytes(codes + i, x[0], x[1], x[2], x[3], (uint8_t)low_code);
    }
}

/* Cells wider than an octave: the random number is compared with the position in the cell. */
INLINE void quantise_v_wide(uint8_t *codes, const float *v, const stq_lattice *lattice, uint32_t key) {
    const vcount shift = vi_count((int)lattice->shift);
    const vint low = vi_all(lattice->low), step = vi_all(1u << lattice->shift), last = vi_all(lattice->last);
    const vint floor_bits = vi_all(lattice->low + (lattice->first << lattice->shift));
    for (int i = 0; i < STQ_BLOCK; i += 4 * LANES) {
        vint x[4];
        for (int k = 0; k < 4; k++) {
            vint value = vi_bits(vf_load(v + i + k * LANES));
            vint raised = vi_larger(value, floor_bits);
            vint code = vi_shift_right_by(vi_subtract(raised, low), shift);
            vint node = vi_add(low, vi_shift_left_by(code, shift));
            vfloat below = vf_from_bits(node), above = vf_from_bits(vi_add(node, step));
            vint index = vi_add(vi_lane_numbers(), vi_all((uint32_t)(i + k * LANES) + 1));
            vint random = vi_shift_right(hash(vi_add(vi_all(key), vi_multiply(index, vi_all(0x9e3779b9u)))), 8);
            vfloat part = vf_multiply(vf_from_integers(random), vf_all(1.0f / 16777216.0f));
            code = vi_add_where_larger(code, vf_subtract(vf_from_bits(raised), below),
                                       vf_multiply(part, vf_subtract(above, below)));
            code = vi_where_zero(value, vi_all(0), vi_smaller(code, last));
            x[k] = vi_shift_left(code, 16);
        }
        store_third_bytes(codes + i, x[0], x[1], x[2], x[3], 0);
    }
}

/* Lattices cut short by the largest float. */
static void quantise_v_slowly(uint8_t *codes, const float *v, const stq_lattice *lattice, uint32_t key) {
    for (uint32_t i = 0; i < STQ_BLOCK; i++) {
        uint32_t pair = stq_random_pair(key, i / 2);
        uint32_t word = i % 2 == 0 ? pair & 0xffffu : pair >> 16;
        codes[i] = (uint8_t)stq_v_encode(stq_float_bits(v[i]), lattice, word, stq_random_wide(key, i));
    }
}

/* Bits of the smallest positive value of the first `count`. */
static uint32_t lowest_positive(const float *v, int count) {
    uint32_t lowest = UINT32_MAX;
    for (int i = 0; i < count; i++) {
        uint32_t less_one = stq_float_bits(v[i]) - 1;
        lowest = less_one < lowest ? less_one : lowest;
    }
    return lowest + 1;
}

/* stq_v_scale_word with its search over eight lattices done at once. */
INLINE uint32_t v_scale_word(uint32_t largest, uint32_t lowest, uint32_t has_zero, const uint32_t bits) {
    if (largest > STQ_LARGEST_FLOAT_BITS || largest == 0)
        return stq_v_scale_word(largest, lowest, has_zero, bits);
    uint32_t floor_bits = largest > (24u << 23) ? largest - (24u << 23) : 1;
    lowest = lowest > floor_bits ? lowest : floor_bits;
    uint32_t finest = stq_v_coarsest(bits) - 7;
    uint32_t fitting = first_fitting_shift(lowest, largest, has_zero, finest, bits);
    if (fitting == 8)
        return stq_v_scale_word(largest, lowest, has_zero, bits);
    bool fits;
    uint32_t low = stq_v_low(lowest, largest, has_zero, finest + fitting, bits, &fits);
    return low >> 19 << 4 | fitting << 1 | (has_zero == 0 && low > 0);
}

INLINE void encode_v(const workspace *work, const stq_planes *planes, int64_t block, int count, uint32_t key,
                     const uint32_t bits) {
    _Alignas(64) uint8_t codes[STQ_BLOCK];
    const float *v = work->v;
    uint32_t largest = work->v_largest, lowest = work->v_lowest, has_zero = 0;
    if (lowest == 0) {
        lowest = lowest_positive(v, count);
        has_zero = 1;
    }
    uint32_t word = v_scale_word(largest, lowest, has_zero, bits);
    stq_lattice lattice = stq_v_lattice(word, bits);
    bool cut = lattice.last != (1u << bits) - 1 || largest > STQ_LARGEST_FLOAT_BITS;
    bool general = has_zero || work->padded || lowest < lattice.low + (lattice.first << lattice.shift);
    if (cut)
        quantise_v_slowly(codes, v, &lattice, key);
    else if (lattice.shift > 23)
        quantise_v_wide(codes, v, &lattice, key);
    else if (general)
        quantise_v(codes, v, &lattice, key, bits, true);
    else
        quantise_v(codes, v, &lattice, key, bits, false);
    planes->scales[block] = (uint16_t)word;
    pack(planes, block, codes, bits, 0);
}

#define DEFINE_ENCODERS(BITS)                                                                              \
    static void encode_m_##BITS(const workspace *work, const stq_planes *planes, int64_t block, int count, \
                                uint32_t key) {                                                            \
        (void)count, (void)key;                                                                            \
        encode_m(work->m, work->m_largest, planes, block, BITS);                                           \
    }                                                                                                      \
    static void encode_v_##BITS(const workspace *work, const stq_planes *planes, int64_t block, int count, \
                                uint32_t key) {                                                            \
        encode_v(work, planes, block, count, key, BITS);                                                   \
    }
DEFINE_ENCODERS(2)
DEFINE_ENCODERS(3)
DEFINE_ENCODERS(4)
DEFINE_ENCODERS(5)
DEFINE_ENCODERS(6)
DEFINE_ENCODERS(7)
DEFINE_ENCODERS(8)

static void store_m_float32(const workspace *work, const stq_planes *planes, int64_t block, int count, uint32_t key) {
    (void)key;
    memcpy((float *)(void *)planes->base + block * STQ_BLOCK, work->m, (size_t)count * sizeof(float));
}

static void store_v_float32(const workspace *work, const stq_planes *planes, int64_t block, int count, uint32_t key) {
    (void)key;
    memcpy((float *)(void *)planes->base + block * STQ_BLOCK, work->v, (size_t)count * sizeof(float));
}

/* A shared v that stays shared. */
static void keep_v(const workspace *work, const stq_planes *planes, int64_t block, int count, uint32_t key) {
    (void)work, (void)planes, (void)block, (void)count, (void)key;
}

static encode_phase *const m_encoders[] = {NULL,       store_m_float32, encode_m_2, encode_m_3, encode_m_4,
                                           encode_m_5, encode_m_6,      encode_m_7, encode_m_8};
static encode_phase *const v_encoders[] = {NULL,       store_v_float32, encode_v_2, encode_v_3, encode_v_4,
                                           encode_v_5, encode_v_6,      encode_v_7, encode_v_8};

/* ---- New parameters ---- */

INLINE void store_parameter(void *array, int index, vfloat value, vint word, const uint32_t dtype) {
    if (dtype == STQ_BFLOAT16)
        vf_store_bfloat16((uint16_t *)array + index, value, word);
    else if (dtype == STQ_FLOAT16)
        vf_store_float16((uint16_t *)array + index, value);
    else
        vf_store((float *)array + index, value);
}

/* p' = decay p - step_size m / (sqrt(v) + epsilon), and with error compensation a share of the rounding error of m.
 * `key` is the block's key of the stream of the stochastic rounding. */
INLINE void parameters(const workspace *work, void *parameter, const stq_coefficients *c, const float *coded,
                       uint32_t key, const uint32_t dtype) {
    const vfloat decay = vf_all(c->decay), epsilon = vf_all(c->epsilon), minus_step = vf_all(-c->step_size);
    const vfloat minus_share = vf_all(-c->step_size * c->compensation);
    UNROLL
    for (int i = 0; i < STQ_BLOCK; i += 2 * LANES) {
        vint pairs = dtype == STQ_BFLOAT16 ? random_pairs(key, i / 2) : vi_all(0);
        for (int half = 0; half < 2; half++) {
            int at = i + half * LANES;
            vfloat m = vf_load(work->m + at);
            vfloat denominator = vf_add(vf_square_root(vf_load(work->v + at)), epsilon);
            vfloat p = vf_multiply(load_float(parameter, at, dtype), decay);
            p = vf_fma(minus_step, vf_divide(m, denominator), p);
            if (coded != NULL) {
                vfloat error = vf_zero_where_zero(m, vf_subtract(m, vf_load(coded + at)));
                p = vf_fma(minus_share, vf_divide(error, denominator), p);
            }
            store_parameter(parameter, at, p, dtype == STQ_BFLOAT16 ? vi_words(pairs, half) : pairs, dtype);
        }
    }
}

#define DEFINE_PARAMETERS(NAME, DTYPE)                                                                          \
    static void parameters_##NAME(const workspace *work, void *parameter, const stq_coefficients *coefficients, \
                                  const float *coded, uint32_t key) {                                           \
        if (coded != NULL)                                                                                      \
            parameters(work, parameter, coefficients, coded, key, DTYPE);                                       \
        else                                                                                                    \
            parameters(work, parameter, coefficients, NULL, key, DTYPE);                                        \
    }
DEFINE_PARAMETERS(float32, STQ_FLOAT32)
DEFINE_PARAMETERS(bfloat16, STQ_BFLOAT16)
DEFINE_PARAMETERS(float16, STQ_FLOAT16)

static parameter_phase *const parameter_phases[] = {parameters_float32, parameters_bfloat16, parameters_float16};

/* ---- One block ---- */

/* The block's zeros after `count` values: they keep code 0 and take no part in the range of v. */
static void pad(workspace *work, int count) {
    work->v_largest = 0;
    work->v_lowest = UINT32_MAX;
    for (int i = 0; i < count; i++) {
        uint32_t bits = stq_float_bits(work->v[i]);
        work->v_largest = bits > work->v_largest ? bits : work->v_largest;
        work->v_lowest = bits < work->v_lowest ? bits : work->v_lowest;
    }
    memset(work->m + count, 0, (size_t)(STQ_BLOCK - count) * sizeof(float));
    memset(work->v + count, 0, (size_t)(STQ_BLOCK - count) * sizeof(float));
    work->padded = true;
}

/* `parameter` and `gradient` are the block's 128 elements; of the last block of an item copies, `count` of them valid.
 */
INLINE void step_block(const item_plan *plan, void *parameter, const void *gradient, int64_t block, int count) {
    workspace work;
    const stq_item *item = plan->item;
    const stq_coefficients *c = plan->coefficients;
    uint32_t global_block = (uint32_t)(item->first_block + block);
    bool coded_in = item->m_in.bits >= 2 && item->m_in.bits <= 8;
    work.dead_bits = coded_in ? stq_float_bits(plan->levels[0] * stq_m_scale(item->m_in.scales[block])) : 0x7fffffffu;
    work.padded = false;
    plan->decode_m(work.m, &item->m_in, block, count, plan->levels);
    if (!plan->shared)
        plan->decode_v(work.v, &item->v_in, block, count, NULL);
    else
        memset(work.v, 0, sizeof work.v);
    plan->moments(&work, gradient, c);
    if (plan->shared)
        stq_shared_values(work.v, &item->v_in, item->cols, (item->first_block + block) * STQ_BLOCK, count);
    if (plan->shared || count < STQ_BLOCK)
        pad(&work, count);
    plan->encode_m(&work, &item->m_out, block, count, 0);
    plan->encode_v(&work, &item->v_out, block, count,
                   stq_block_key(c->step_key, item->tensor, global_block, STQ_STREAM_SECOND_MOMENT));
    const float *coded = NULL;
    _Alignas(64) float room[STQ_BLOCK];
    if (plan->decode_m_out != NULL) {
        plan->decode_m_out(room, &item->m_out, block, count, plan->levels_out);
        coded = room;
    }
    uint32_t key = item->parameter_type == STQ_BFLOAT16
                       ? stq_block_key(c->step_key, item->tensor, global_block, STQ_STREAM_PARAMETER)
                       : 0;
    plan->parameters(&work, parameter, c, coded, key);
}

static void step_partial_block(const item_plan *plan, void *parameter, const void *gradient, int64_t block, int count) {
    _Alignas(64) uint8_t p[STQ_BLOCK * sizeof(float)] = {0}, g[STQ_BLOCK * sizeof(float)] = {0};
    size_t parameter_bytes = (size_t)count * stq_dtype_size(plan->item->parameter_type);
    memcpy(p, parameter, parameter_bytes);
    memcpy(g, gradient, (size_t)count * stq_dtype_size(plan->item->gradient_type));
    step_block(plan, p, g, block, count);
    memcpy(parameter, p, parameter_bytes);
}

static item_plan make_plan(const stq_item *item, const stq_coefficients *c) {
    item_plan plan = {
        .item = item,
        .coefficients = c,
        .decode_m = m_decoders[width_index(item->m_in.bits)],
        .decode_v = stq_is_shared(item->v_in.bits) ? NULL : v_decoders[width_index(item->v_in.bits)],
        .moments = moments_phases[item->gradient_type],
        .encode_m = m_encoders[width_index(item->m_out.bits)],
        .encode_v = stq_is_shared(item->v_out.bits) ? keep_v : v_encoders[width_index(item->v_out.bits)],
        .parameters = parameter_phases[item->parameter_type],
        .shared = stq_is_shared(item->v_in.bits),
    };
    fill_levels(plan.levels, item->m_in.bits);
    if (c->compensation != 0.0f && item->m_out.bits != STQ_BITS_FLOAT32) {
        plan.decode_m_out = m_decoders[width_index(item->m_out.bits)];
        fill_levels(plan.levels_out, item->m_out.bits);
    }
    return plan;
}

static __attribute__((noinline)) void step_coded(const stq_item *item, const stq_coefficients *c, int64_t first_block,
                                                 int64_t end_block) {
    item_plan plan = make_plan(item, c);
    int64_t parameter_size = (int64_t)stq_dtype_size(item->parameter_type);
    int64_t gradient_size = (int64_t)stq_dtype_size(item->gradient_type);
    for (int64_t block = first_block; block < end_block; block++) {
        int64_t first = block * STQ_BLOCK;
        uint8_t *p = (uint8_t *)item->parameter + first * parameter_size;
        const uint8_t *g = (const uint8_t *)item->gradient + first * gradient_size;
        if (item->count - first >= STQ_BLOCK)
            step_block(&plan, p, g, block, STQ_BLOCK);
        else
            step_partial_block(&plan, p, g, block, (int)(item->count - first));
    }
}

/* ---- float32 states: plain AdamW in one loop ---- */

/* One block; arrays point to its first element. */
INLINE void step_float32_block(void *parameter, const void *gradient, float *m_state, float *v_state,
                               const stq_coefficients *c, uint32_t key, const uint32_t parameter_type,
                               const uint32_t gradient_type) {
    const vfloat factor = vf_all(c->gradient_factor);
    const vfloat beta1 = vf_all(c->beta1), one_minus_beta1 = vf_all(c->one_minus_beta1);
    const vfloat beta2 = vf_all(c->beta2), one_minus_beta2 = vf_all(c->one_minus_beta2);
    const vfloat decay = vf_all(c->decay), epsilon = vf_all(c->epsilon), minus_step = vf_all(-c->step_size);
    UNROLL
    for (int i = 0; i < STQ_BLOCK; i += 2 * LANES) {
        vint pairs = parameter_type == STQ_BFLOAT16 ? random_pairs(key, i / 2) : vi_all(0);
        for (int half = 0; half < 2; half++) {
            int at = i + half * LANES;
            vfloat g = vf_multiply(load_float(gradient, at, gradient_type), factor);
            vfloat m = vf_fma(beta1, vf_load(m_state + at), vf_multiply(one_minus_beta1, g));
            vfloat v = vf_fma(beta2, vf_load(v_state + at), vf_multiply(one_minus_beta2, vf_multiply(g, g)));
            vf_store(m_state + at, m);
            vf_store(v_state + at, v);
            vfloat p = vf_multiply(load_float(parameter, at, parameter_type), decay);
            p = vf_fma(minus_step, vf_divide(m, vf_add(vf_square_root(v), epsilon)), p);
            store_parameter(parameter, at, p, parameter_type == STQ_BFLOAT16 ? vi_words(pairs, half) : pairs,
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
        uint32_t key =
            item->parameter_type == STQ_BFLOAT16
                ? stq_block_key(c->step_key, item->tensor, (uint32_t)(item->first_block + block), STQ_STREAM_PARAMETER)
                : 0;
        if (item->count - first >= STQ_BLOCK)
            phase(p, g, m, v, c, key);
        else
            step_float32_partial(phase, p, g, m, v, item, c, key, (int)(item->count - first));
    }
}

/* ---- The table's functions ---- */

static bool stays_float32(const stq_planes *in, const stq_planes *out) {
    return in->bits == STQ_BITS_FLOAT32 && out->bits == STQ_BITS_FLOAT32 && in->base == out->base;
}

static void step(const stq_item *item, const stq_coefficients *coefficients, int64_t first_block, int64_t end_block) {
    uint64_t mode = stq_float_mode_set();
    if (stays_float32(&item->m_in, &item->m_out) && stays_float32(&item->v_in, &item->v_out))
        step_float32(item, coefficients, first_block, end_block);
    else
        step_coded(item, coefficients, first_block, end_block);
    stq_float_mode_restore(mode);
}

/* Copies a block's values and finds their ranges. */
static void load_block(workspace *work, const float *values, int count) {
    memcpy(work->m, values, (size_t)count * sizeof(float));
    memset(work->m + count, 0, (size_t)(STQ_BLOCK - count) * sizeof(float));
    memcpy(work->v, work->m, sizeof work->m);
    vint m_largest = vi_all(0), v_largest = vi_all(0), v_lowest = vi_all(UINT32_MAX);
    for (int i = 0; i < STQ_BLOCK; i += LANES) {
        vfloat value = vf_load(work->m + i);
        m_largest = vi_larger(m_largest, vi_magnitude(value));
        v_largest = vi_larger(v_largest, vi_bits(value));
        v_lowest = vi_smaller(v_lowest, vi_bits(value));
    }
    vi_reduce(m_largest, v_largest, v_lowest, &work->m_largest, &work->v_largest, &work->v_lowest);
    work->padded = false;
    if (count < STQ_BLOCK)
        pad(work, count);
}

static __attribute__((noinline)) void encode_blocks(const stq_planes *planes, stq_state state, const float *values,
                                                    int64_t count, int64_t first_block, int64_t end_block,
                                                    const stq_random *random) {
    uint32_t step_key = random != NULL ? stq_step_key(random->seed, random->step) : 0;
    for (int64_t block = first_block; block < end_block; block++) {
        workspace work;
        int64_t left = count - block * STQ_BLOCK;
        int valid = left < STQ_BLOCK ? (int)left : STQ_BLOCK;
        load_block(&work, values + block * STQ_BLOCK, valid);
        if (state == STQ_FIRST_MOMENT)
            m_encoders[planes->bits](&work, planes, block, valid, 0);
        else
            v_encoders[planes->bits](&work, planes, block, valid,
                                     stq_block_key(step_key, random->tensor, (uint32_t)(random->first_block + block),
                                                   STQ_STREAM_SECOND_MOMENT));
    }
}

static void encode(const stq_planes *planes, stq_state state, const float *values, int64_t count, int64_t first_block,
                   int64_t end_block, const stq_random *random) {
    uint64_t mode = stq_float_mode_set();
    encode_blocks(planes, state, values, count, first_block, end_block, random);
    stq_float_mode_restore(mode);
}

static __attribute__((noinline)) void decode_blocks(float *values, const stq_planes *planes, stq_state state,
                                                    int64_t count, int64_t first_block, int64_t end_block) {
    float levels[STQ_LEVELS];
    fill_levels(levels, planes->bits);
    decode_phase *phase = (state == STQ_FIRST_MOMENT ? m_decoders : v_decoders)[width_index(planes->bits)];
    for (int64_t block = first_block; block < end_block; block++) {
        _Alignas(64) float room[STQ_BLOCK];
        int64_t left = count - block * STQ_BLOCK;
        int valid = left < STQ_BLOCK ? (int)left : STQ_BLOCK;
        phase(room, planes, block, valid, levels);
        memcpy(values + block * STQ_BLOCK, room, (size_t)valid * sizeof(float));
    }
}

static void decode(float *values, const stq_planes *planes, stq_state state, int64_t count, int64_t first_block,
                   int64_t end_block) {
    uint64_t mode = stq_float_mode_set();
    decode_blocks(values, planes, state, count, first_block, end_block);
    stq_float_mode_restore(mode);
}
