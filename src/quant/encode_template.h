/*
 * encode_template.h - the part of kernel_template.h that makes codes and planes from moments: scale words, rounding to
 * codes, one function for each width.
 */

typedef void encode_block(const workspace *work, const stq_planes *planes, int block);

/* ---- Encoding the first moment ---- */

/* Code bytes with the sign in bit 7 and the magnitude below it. fma(m, inverse, +-1) is +-t: rounding is symmetric. */
INLINE void quantise_m(uint8_t *codes, const float *m, float inverse, const coder *constants) {
    const vfloat inverses = vf_all(inverse);
    UNROLL
    for (int i = 0; i < STQ_BLOCK; i += 4 * LANES) {
        vfloat t[4];
        for (int k = 0; k < 4; k++) {
            vfloat x = vf_load(m + i + k * LANES);
            t[k] = vf_fma(x, inverses, one_with_sign(constants, x));
        }
        store_sign_codes(codes + i, constants, t[0], t[1], t[2], t[3]);
    }
}

/* The values of a block that needs the prescale, or some t of which rounds to 4, past the last level: with |m| at most
 * 0.999 times the scale t is below 4, and in the last cell of any width wherever that changed it. */
static __attribute__((noinline)) void moderate_m(float *to, const float *m, uint32_t scale_word) {
    const vfloat prescale = vf_all(stq_m_prescale(scale_word));
    const vfloat limit = vf_multiply(vf_all(0.999f * stq_m_scale(scale_word)), prescale);
    for (int i = 0; i < STQ_BLOCK; i += LANES)
        vf_store(to + i, vf_limit_magnitude(vf_multiply(vf_load(m + i), prescale), limit));
}

INLINE void encode_m_block(const workspace *work, const stq_planes out, int block, const float *m,
                           const coder *constants, const uint32_t bits) {
    _Alignas(64) uint8_t codes[STQ_BLOCK];
    quantise_m(codes, m, work->m_inverse[block], constants);
    out.scales[work->first + block] = (uint16_t)work->m_word[block];
    pack(out, work->first + block, codes, constants, bits, 8 - bits);
}

/* A block that is not among the usual ones. */
INLINE void encode_m_other(const workspace *work, const stq_planes *planes, int block, const uint32_t bits) {
    const coder constants = make_coder(8 - bits, bits);
    _Alignas(64) float moderate[STQ_BLOCK];
    moderate_m(moderate, work->m[block], work->m_word[block]);
    encode_m_block(work, *planes, block, moderate, &constants, bits);
}

/* The usual blocks in a loop without calls, in which constants stay in registers. */
INLINE void encode_m(const workspace *work, const stq_planes *planes, const uint32_t bits, encode_block *other) {
    const stq_planes out = *planes;
    const int blocks = work->blocks;
    for (int block = 0; block < blocks; block++) {
        const coder constants = make_coder(8 - bits, bits);
        for (; block < blocks && !work->m_careful[block]; block++)
            encode_m_block(work, out, block, work->m[block], &constants, bits);
        if (block < blocks)
            other(work, planes, block);
    }
}

/* stq_m_scale_word, stq_m_prescale and stq_m_inverse of all blocks. */
static void prepare_m(workspace *work) {
    for (int i = 0; i < CHUNK; i += LANES) {
        vint largest = vi_load(work->m_largest + i);
        vint word = vi_smaller(vi_shift_right(vi_add(largest, vi_all(0xffff)), 16), vi_all(0x7f7f));
        vint tiny = vi_less(word, vi_all(27u << 7));
        vfloat prescale = vf_from_bits(vi_select(tiny, vi_bits(vf_all(0x1p64f)), vi_bits(vf_all(1.0f))));
        vfloat scale = vf_multiply(vf_from_bits(vi_shift_left(word, 16)), prescale);
        vfloat inverse = vf_zero_where_zero(scale, vf_divide(vf_all(3.0f), scale));
        vint t = vi_bits(vf_fma(vf_from_bits(largest), inverse, vf_all(1.0f)));
        vint in_range = vi_less(t, vi_bits(vf_all(4.0f)));
        vi_store(work->m_word + i, word);
        vf_store(work->m_inverse + i, inverse);
        vi_store(work->m_careful + i, vi_select(in_range, tiny, vi_all(1)));
    }
}

/* ---- Encoding the second moment ---- */

/* How far quantise_v moves everything up first. */
INLINE int v_moved_up(uint32_t bits) { return bits > 5 ? (int)bits - 5 : 0; }

/* Bits of the smallest positive value of a lattice. */
INLINE uint32_t v_floor(uint32_t word, uint32_t bits) {
    stq_lattice lattice = stq_v_lattice(word, bits);
    return lattice.low + (lattice.first << lattice.shift);
}

/* The usual case: cells of at most an octave. With s = shift - 16 the reference's (offset + (word shifted to the cell's
 * width)) >> shift is ((offset >> s) + word) >> 16, because the bits below s of the offset meet zeros of the shifted
 * word; with s < 0 both are shifted left. `low` is a multiple of the cell, so that it can be taken off afterwards, from
 * the codes. Above 5 bits s may be negative: everything is moved up by bits - 5 first, which overflows bits that the
 * code does not reach. `general` blocks have values that are 0 or lie below the lattice's floor. */
INLINE void quantise_v(uint8_t *codes, const workspace *work, int block, const coder *constants, const uint32_t bits,
                       const bool general) {
    const float *v = work->v[block];
    const int up = v_moved_up(bits);
    const vcount down = vi_count((int)work->v_down[block]);
    const vint floor_bits = vi_all(general ? v_floor(work->v_word[block], bits) : 0);
    const uint32_t low_code = work->v_low_code[block];
    UNROLL
    for (int i = 0; i < STQ_BLOCK; i += 4 * LANES) {
        vint x[4];
        for (int k = 0; k < 4; k++) {
            vint value = vi_bits(vf_load(v + i + k * LANES));
            vint raised = general ? vi_larger(value, floor_bits) : value;
            if (up > 0)
                raised = vi_shift_left(raised, up);
            raised = vi_add(vi_shift_right_by(raised, down), vi_load(work->v_random[block] + i + k * LANES));
            x[k] = general ? vi_where_zero(value, vi_all(low_code << 16), raised) : raised;
        }
        store_third_bytes(codes + i, constants, x[0], x[1], x[2], x[3], low_code, up == 0);
    }
}

/* Cells wider than an octave: the random number is compared with the position in the cell. */
INLINE void quantise_v_wide(uint8_t *codes, const float *v, const stq_lattice *lattice, uint32_t key,
                            const coder *constants) {
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
        store_third_bytes(codes + i, constants, x[0], x[1], x[2], x[3], 0, true);
    }
}

/* Lattices cut short by the largest float. */
static void quantise_v_slowly(uint8_t *codes, const float *v, const stq_lattice *lattice, uint32_t key) {
    for (uint32_t i = 0; i < STQ_BLOCK; i++) {
        uint32_t pair = stq_random_pair(key, i / 2);
        uint32_t word = i % 2 == 0 ? pair & 0xffffu : pair >> 16;
        codes[code_place(i)] = (uint8_t)stq_v_encode(stq_float_bits(v[i]), lattice, word, stq_random_wide(key, i));
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

INLINE void encode_v_block(const workspace *work, const stq_planes out, int block, const coder *constants,
                           const uint32_t bits, const uint32_t path) {
    _Alignas(64) uint8_t codes[STQ_BLOCK];
    const float *v = work->v[block];
    stq_lattice lattice = stq_v_lattice(work->v_word[block], bits);
    if (path == V_PLAIN)
        quantise_v(codes, work, block, constants, bits, false);
    else if (path == V_GENERAL)
        quantise_v(codes, work, block, constants, bits, true);
    else if (path == V_WIDE)
        quantise_v_wide(codes, v, &lattice, work->v_key[block], constants);
    else if (path == V_CUT)
        quantise_v_slowly(codes, v, &lattice, work->v_key[block]);
    else
        memset(codes, 0, sizeof codes);
    out.scales[work->first + block] = (uint16_t)work->v_word[block];
    pack(out, work->first + block, codes, constants, bits, 0);
}

/* Blocks that are not plain go through `other`, apart, so that the codes of plain ones and constants stay in registers.
 */
INLINE void encode_v(const workspace *work, const stq_planes *planes, const uint32_t bits, encode_block *other) {
    const stq_planes out = *planes;
    const int blocks = work->blocks;
    for (int block = 0; block < blocks; block++) {
        const coder constants = make_coder(0, bits);
        for (; block < blocks && work->v_path[block] == V_PLAIN; block++)
            encode_v_block(work, out, block, &constants, bits, V_PLAIN);
        if (block < blocks)
            other(work, planes, block);
    }
}

/* The bits of the lattice's lowest code that are taken off the codes. */
INLINE uint32_t low_code_mask(uint32_t bits) { return v_moved_up(bits) > 0 ? 0xff : 0xffff; }

/* The scale word and the path of any block. */
static __attribute__((noinline)) void prepare_any_v(workspace *work, int block, uint32_t bits) {
    uint32_t largest = work->v_largest[block], lowest = work->v_lowest[block], has_zero = lowest == 0;
    if (has_zero)
        lowest = lowest_positive(work->v[block], work->count);
    uint32_t word = stq_v_scale_word(largest, lowest, has_zero, bits);
    stq_lattice lattice = stq_v_lattice(word, bits);
    uint32_t path = V_PLAIN;
    if (largest == 0)
        path = V_ZERO;
    else if (lattice.last != (1u << bits) - 1 || largest > STQ_LARGEST_FLOAT_BITS)
        path = V_CUT;
    else if (lattice.shift > 23)
        path = V_WIDE;
    else if (has_zero || work->count < STQ_BLOCK || lowest < lattice.low + (lattice.first << lattice.shift))
        path = V_GENERAL;
    work->v_word[block] = word;
    work->v_path[block] = path;
    work->v_down[block] = lattice.shift - 16 + (uint32_t)v_moved_up(bits);
    work->v_low_code[block] = lattice.low >> lattice.shift & low_code_mask(bits);
}

/*
 * The same for all blocks. Of whole blocks of positive, finite values the lattice is found without a search: with the
 * range, from the smallest value or the end of the reach to the largest, of n bits one of shift s fits only if span 2^s
 * is at least that, for which s >= n - bits is necessary, and s + 1 always does: its span is then at least 3/4 2^(n +
 * 1), twice the range with a grain to spare.
 */
static void prepare_v(workspace *work, uint32_t bits) {
    const vint finest = vi_all(stq_v_finest(bits)), reach = vi_all(stq_v_reach(bits, 0));
    const vint span = vi_all((1u << bits) - 1), nineteen = vi_all(19);
    for (int i = 0; i < CHUNK; i += LANES) {
        vint largest = vi_load(work->v_largest + i), smallest = vi_load(work->v_lowest + i);
        vint lowest = vi_larger(smallest, vi_and(vi_less(reach, largest), vi_subtract(largest, reach)));
        vint range = vi_subtract(largest, lowest);
        vint some = vi_or(range, vi_all(1));
        vint top_bit = vi_and_not(vi_shift_right(some, 1), some); /* and bits below the next: no rounding up */
        vint length = vi_subtract(vi_shift_right(vi_bits(vf_from_integers(top_bit)), 23), vi_all(126));
        vint shift = vi_subtract(vi_larger(length, vi_all(21)), vi_all(bits));
        vint grain = vi_larger(shift, nineteen);
        vint low = vi_shift_left_each(vi_shift_right_each(lowest, grain), grain);
        shift = vi_subtract(shift, vi_less(vi_add(low, vi_shift_left_each(span, shift)), largest));
        grain = vi_larger(shift, nineteen);
        low = vi_shift_left_each(vi_shift_right_each(lowest, grain), grain);
        vint last = vi_add(low, vi_shift_left_each(span, shift));
        vint usual = vi_and(vi_less(vi_all(0), low), vi_less(vi_all(0), smallest));
        usual = vi_and(usual, vi_less(largest, vi_all(STQ_LARGEST_FLOAT_BITS + 1)));
        usual = vi_and(usual, vi_less(last, vi_all(STQ_LARGEST_FLOAT_BITS + 1)));
        vint narrow = vi_select(vi_less(smallest, low), vi_all(V_GENERAL), vi_all(V_PLAIN));
        vint path = vi_select(vi_less(shift, vi_all(24)), narrow, vi_all(V_WIDE));
        vint word = vi_or(vi_shift_left(vi_shift_right(low, 19), 4), vi_shift_left(vi_subtract(shift, finest), 1));
        vi_store(work->v_word + i, vi_or(word, vi_all(1)));
        vi_store(work->v_down + i, vi_add(shift, vi_all((uint32_t)(v_moved_up(bits) - 16))));
        vi_store(work->v_low_code + i, vi_and(vi_shift_right_each(low, shift), vi_all(low_code_mask(bits))));
        vi_store(work->v_path + i, vi_select(usual, path, vi_all(V_UNKNOWN)));
    }
    for (int block = 0; block < work->blocks; block++)
        if (work->v_path[block] == V_UNKNOWN || work->count < STQ_BLOCK)
            prepare_any_v(work, block, bits);
}

#define DEFINE_ENCODERS(BITS)                                                                                    \
    static __attribute__((noinline)) void encode_m_other_##BITS(const workspace *work, const stq_planes *planes, \
                                                                int block) {                                     \
        encode_m_other(work, planes, block, BITS);                                                               \
    }                                                                                                            \
    static void encode_m_##BITS(const workspace *work, const stq_planes *planes) {                               \
        encode_m(work, planes, BITS, encode_m_other_##BITS);                                                     \
    }                                                                                                            \
    static __attribute__((noinline)) void encode_v_other_##BITS(const workspace *work, const stq_planes *planes, \
                                                                int block) {                                     \
        const coder constants = make_coder(0, BITS);                                                             \
        encode_v_block(work, *planes, block, &constants, BITS, work->v_path[block]);                             \
    }                                                                                                            \
    static void encode_v_##BITS(const workspace *work, const stq_planes *planes) {                               \
        encode_v(work, planes, BITS, encode_v_other_##BITS);                                                     \
    }
DEFINE_ENCODERS(2)
DEFINE_ENCODERS(3)
DEFINE_ENCODERS(4)
DEFINE_ENCODERS(5)
DEFINE_ENCODERS(6)
DEFINE_ENCODERS(7)
DEFINE_ENCODERS(8)

static void store_float32(const float *from, const workspace *work, const stq_planes *planes) {
    memcpy((float *)(void *)planes->base + work->first * STQ_BLOCK, from,
           (size_t)(work->blocks * work->count) * sizeof *from);
}

static void store_m_float32(const workspace *work, const stq_planes *planes) {
    store_float32(work->m[0], work, planes);
}

static void store_v_float32(const workspace *work, const stq_planes *planes) {
    store_float32(work->v[0], work, planes);
}

/* A shared v that stays shared. */
static void keep_v(const workspace *work, const stq_planes *planes) { (void)work, (void)planes; }

/* Indexed by width. */
static encode_stage *const m_encoders[] = {NULL,       NULL,       encode_m_2, encode_m_3, encode_m_4,
                                           encode_m_5, encode_m_6, encode_m_7, encode_m_8};
static encode_stage *const v_encoders[] = {NULL,       NULL,       encode_v_2, encode_v_3, encode_v_4,
                                           encode_v_5, encode_v_6, encode_v_7, encode_v_8};
