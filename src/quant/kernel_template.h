/*
 * kernel_template.h - the one body of the fast kernels, with advance_template.h, encode_template.h and
 * plain_template.h, included once by the file of each instruction set (x86/avx512.c, x86/avx2.c, arm/neon.c) after it
 * has defined its vector layer. The results are those of reference.c, byte for byte: the same IEEE operations in the
 * same order; only the integer work in between is arranged differently, and says why that is the same.
 *
 * Blocks go through in chunks of eight, in stages that hand them on in a workspace of the level-1 cache: planes are
 * unpacked into codes of one byte; codes become values, new moments and new parameters in one loop; the ranges of the
 * moments become scale words, the chunk's blocks side by side in the lanes; moments become codes and planes. Only
 * packing and unpacking know the width: codes are aligned so that everything else is the same for all widths, or for
 * those up to 5 bits and those above. So 7 + 7 + 7 small functions serve all 49 pairs of widths, transitions included,
 * and nothing branches per value. Where LOOKS_UP_PLANES is set, two moments of 4 or of 5 bits skip unpacking:
 * m_of_nibbles and v_of_nibbles make LANES values out of the plane, m_of_fives and v_of_fives four times as many out of
 * two.
 *
 * The vector layer:
 * - LANES, vfloat, vint, vcount: a vector of LANES floats or 32-bit integers, and a shift common to all lanes
 * - vf_..., vi_...: arithmetic, named after what it does
 * - vi_keep, word_lanes, coder: constants that stay in their registers in a loop over blocks
 * - unpack: the planes of a block to 128 codes of one byte, in an order of its own inside groups of GROUP vectors
 * - pack: the way back, from codes in the order that code_place tells
 * - m_levels, m_source, v_source, m_values, v_values: from unpacked codes to GROUP vectors of values
 * - store_sign_codes, store_third_bytes: the last step to codes, four vectors to 4 LANES bytes
 * - vi_reduce: the ranges of a block out of those of the lanes; where REDUCES_CHUNKS is set, vi_keep_ranges and
 *   vi_reduce_eight do that for eight blocks together
 */

/* Blocks in a chunk: so few that a chunk stays in the cache together with its gradients and parameters. */
enum { CHUNK = 8, CHUNK_LANES = CHUNK < LANES ? LANES : CHUNK };

/* How the second moments of a block are rounded. */
enum {
    V_PLAIN,   /* every value is positive and above the lattice's floor */
    V_GENERAL, /* some are 0 or below it */
    V_WIDE,    /* cells of more than an octave */
    V_CUT,     /* the lattice is cut short by the largest float */
    V_ZERO,    /* every value is 0 */
    V_UNKNOWN
};

/* What the stages hand on. Arrays of CHUNK_LANES have an entry for each block; those after the chunk's last block hold
 * anything. */
typedef struct workspace {
    _Alignas(64) float m[CHUNK][STQ_BLOCK];
    _Alignas(64) float v[CHUNK][STQ_BLOCK];
    _Alignas(64) uint8_t m_codes[CHUNK][STQ_BLOCK];
    _Alignas(64) uint8_t v_codes[CHUNK][STQ_BLOCK];
    _Alignas(64) float m_scale[CHUNK_LANES]; /* of the old codes: scales, lowest levels */
    _Alignas(64) float m_lowest[CHUNK_LANES];
    _Alignas(64) uint32_t v_low[CHUNK_LANES]; /* lattices, for codes as they are aligned */
    _Alignas(64) uint32_t v_shift[CHUNK_LANES];
    _Alignas(64) uint32_t v_first[CHUNK_LANES];
    _Alignas(64) uint32_t m_largest[CHUNK_LANES]; /* bits of the largest magnitude of m */
    _Alignas(64) uint32_t v_largest[CHUNK_LANES]; /* largest and smallest bits of v, where 0 counts */
    _Alignas(64) uint32_t v_lowest[CHUNK_LANES];
    _Alignas(64) uint32_t m_word[CHUNK_LANES]; /* scale words */
    _Alignas(64) uint32_t v_word[CHUNK_LANES];
    _Alignas(64) float m_inverse[CHUNK_LANES];
    _Alignas(
        64) uint32_t m_careful[CHUNK_LANES]; /* not 0: needs the prescale, or a magnitude rounds past the last level */
    _Alignas(64) uint32_t v_path[CHUNK_LANES];
    _Alignas(64) uint32_t v_key[CHUNK_LANES];
    _Alignas(64) uint32_t v_down[CHUNK_LANES]; /* see quantise_v */
    _Alignas(64) uint32_t v_low_code[CHUNK_LANES];
    _Alignas(64) uint32_t v_random[CHUNK][STQ_BLOCK]; /* random words of v's rounding */
#if REDUCES_CHUNKS
    _Alignas(64) uint32_t ranges[CHUNK][2 * LANES]; /* see vi_keep_ranges */
#endif
    int64_t first; /* the chunk's first block */
    int blocks;    /* 1 to CHUNK */
    int count;     /* values of a block: 128, or less if the only block is partial */
    /* Gradients and parameters that are not float32, or of a partial block. */
    _Alignas(64) float g[CHUNK][STQ_BLOCK];
    _Alignas(64) float p[CHUNK][STQ_BLOCK];
} workspace;

/* The stages chosen for one item and what they share. */
typedef struct item_plan item_plan;
typedef void unpack_stage(uint8_t *codes, const stq_planes *planes, int64_t first, int blocks);
typedef void advance_stage(workspace *work, float *parameter, const float *gradient, const item_plan *plan);
typedef void encode_stage(const workspace *work, const stq_planes *planes);

/* How the codes of one width become values of m. */
typedef struct m_decoder {
    unpack_stage *unpack;
    float lowest;             /* the lowest level, relative to the scale; not a number without codes */
    uint32_t offset;          /* see m_by_arithmetic */
    float levels[STQ_LEVELS]; /* of all narrow codes */
} m_decoder;

struct item_plan {
    const stq_item *item;
    const stq_coefficients *coefficients;
    m_decoder m_in, m_out;
    unpack_stage *unpack_v;
    uint32_t v_finest;      /* shift of v's finest lattice for old codes as they are aligned */
    advance_stage *advance; /* from codes, or from floats where a state has no planes or float32 ones */
    bool m_from_floats;
    bool v_from_floats;
    bool shared;      /* v_in holds means */
    bool from_planes; /* `advance` looks codes up in the planes */
    encode_stage *encode_m, *encode_v;
    uint32_t v_key; /* the part of stq_block_key that all blocks share */
    uint32_t parameter_key;
};

/* ---- Random numbers ---- */

/* What a loop over blocks keeps in registers: the factors of stq_mix_pair, and what vi_words needs. */
typedef struct mixer {
    vint first, second;
    word_lanes words;
} mixer;

INLINE mixer make_mixer(void) {
    return (mixer){vi_keep(vi_all(0x7feb352du)), vi_keep(vi_all(0x846ca68bu)), make_word_lanes()};
}

/* LANES pairs of random words, number `first` and up, in the order from which vi_words takes them. The last line of
 * stq_random_pair and its first two are as there. */
INLINE vint random_pairs(uint32_t key, int first, const mixer *mix) {
    vint x = vi_xor(vi_all(key), vi_multiply(vi_add(vi_pair_numbers(), vi_all((uint32_t)first)), vi_all(0x2545f491u)));
    x = vi_multiply(x, mix->first);
    x = vi_xor(x, vi_shift_right(x, 15));
    x = vi_multiply(x, mix->second);
    return vi_xor(x, vi_shift_right(x, 16));
}

INLINE vint hash(vint x) {
    x = vi_xor(x, vi_shift_right(x, 16));
    x = vi_multiply(x, vi_all(0x7feb352du));
    x = vi_xor(x, vi_shift_right(x, 15));
    x = vi_multiply(x, vi_all(0x846ca68bu));
    return vi_xor(x, vi_shift_right(x, 16));
}

/* The keys of the chunk's blocks; `key` belongs to the first one, see block_key. */
static void set_keys(workspace *work, uint32_t key) {
    for (int i = 0; i < CHUNK; i += LANES) {
        vint number = vi_add(vi_lane_numbers(), vi_all((uint32_t)i));
        vi_store(work->v_key + i, hash(vi_add(vi_all(key), vi_multiply(number, vi_all(0x9e3779b9u)))));
    }
}

/* Random words for 2 LANES values, from value i of the block on. */
INLINE void make_words(workspace *work, int block, int i, const mixer *mix) {
    vint pairs = random_pairs(work->v_key[block], i / 2, mix);
    vi_store(work->v_random[block] + i, vi_words(pairs, 0, mix->words));
    vi_store(work->v_random[block] + i + LANES, vi_words(pairs, 1, mix->words));
}

/* ---- Decoding ---- */

INLINE bool is_narrow(uint32_t bits) { return bits <= NARROW_BITS; }

/* Where the most significant bit of an unpacked code of this width is: narrow codes fill the low NARROW_BITS bits of
 * their byte from above, others the whole byte, so that what follows need not know the width. */
INLINE uint32_t alignment(uint32_t bits) { return is_narrow(bits) ? NARROW_BITS : 8; }

#define DEFINE_UNPACK(BITS)                                                                          \
    static void unpack_##BITS(uint8_t *codes, const stq_planes *planes, int64_t first, int blocks) { \
        const stq_planes in = *planes;                                                               \
        for (int i = 0; i < blocks; i++)                                                             \
            unpack(codes + i * STQ_BLOCK, in, first + i, BITS, alignment(BITS));                     \
    }
DEFINE_UNPACK(2)
DEFINE_UNPACK(3)
DEFINE_UNPACK(4)
DEFINE_UNPACK(5)
DEFINE_UNPACK(6)
DEFINE_UNPACK(7)
DEFINE_UNPACK(8)

/* Indexed by width. */
static unpack_stage *const unpack_stages[] = {NULL,     NULL,     unpack_2, unpack_3, unpack_4,
                                              unpack_5, unpack_6, unpack_7, unpack_8};

static m_decoder make_m_decoder(uint32_t bits) {
    m_decoder decoder;
    decoder.unpack = NULL;
    decoder.lowest = NAN;
    decoder.offset = 0;
    if (!stq_is_coded(bits))
        return decoder;
    decoder.unpack = unpack_stages[bits];
    decoder.lowest = stq_m_level(0, bits);
    decoder.offset = STQ_ONE_BITS + (1u << (24 - bits));
    for (int i = 0; i < STQ_LEVELS; i += LANES) {
        vint code = vi_shift_left(vi_add(vi_lane_numbers(), vi_all((uint32_t)i)), 8 - NARROW_BITS);
        vf_store(decoder.levels + i, m_by_arithmetic(code, vf_all(1.0f), vi_all(decoder.offset)));
    }
    return decoder;
}

INLINE v_source v_source_of(const stq_planes *planes, int64_t block) {
    stq_lattice lattice = stq_v_lattice(planes->scales[block], planes->bits);
    return make_v_source(lattice.low, lattice.shift - (alignment(planes->bits) - planes->bits), lattice.first);
}

INLINE m_source m_source_of(const m_decoder *decoder, const stq_planes *planes, int64_t block) {
    return make_m_source(stq_m_scale(planes->scales[block]), load_levels(decoder->levels), decoder->offset);
}

INLINE void values_of_m(float *to, const uint8_t *codes, const m_source *source, const bool narrow) {
    for (int i = 0; i < STQ_BLOCK; i += GROUP * LANES) {
        vfloat values[GROUP];
        m_values(values, source, codes + i, narrow);
        for (int k = 0; k < GROUP; k++)
            vf_store(to + i + k * LANES, values[k]);
    }
}

INLINE void values_of_v(float *to, const uint8_t *codes, const v_source *source, const bool narrow) {
    for (int i = 0; i < STQ_BLOCK; i += GROUP * LANES) {
        vfloat values[GROUP];
        v_values(values, source, codes + i, narrow);
        for (int k = 0; k < GROUP; k++)
            vf_store(to + i + k * LANES, values[k]);
    }
}

/* A state without codes: zeros, or `count` floats; 128 values in any case. */
static void load_floats(float *to, const stq_planes *planes, int64_t block, int count) {
    memset(to, 0, STQ_BLOCK * sizeof *to);
    if (planes->bits == STQ_BITS_FLOAT32)
        memcpy(to, (const float *)(const void *)planes->base + block * STQ_BLOCK, (size_t)count * sizeof *to);
}

static void decode_m(float *to, const m_decoder *decoder, const stq_planes *planes, int64_t block, int count) {
    _Alignas(64) uint8_t codes[STQ_BLOCK];
    if (!stq_is_coded(planes->bits)) {
        load_floats(to, planes, block, count);
        return;
    }
    decoder->unpack(codes, planes, block, 1);
    m_source source = m_source_of(decoder, planes, block);
    if (is_narrow(planes->bits))
        values_of_m(to, codes, &source, true);
    else
        values_of_m(to, codes, &source, false);
}

static void decode_v(float *to, const stq_planes *planes, int64_t block, int count) {
    _Alignas(64) uint8_t codes[STQ_BLOCK];
    if (!stq_is_coded(planes->bits)) {
        load_floats(to, planes, block, count);
        return;
    }
    unpack_stages[planes->bits](codes, planes, block, 1);
    v_source source = v_source_of(planes, block);
    if (is_narrow(planes->bits))
        values_of_v(to, codes, &source, true);
    else
        values_of_v(to, codes, &source, false);
}

#include "quant/advance_template.h"
#include "quant/encode_template.h"

/* ---- Gradients and parameters of other types ---- */

INLINE vfloat load_float(const void *array, int index, const uint32_t dtype) {
    if (dtype == STQ_BFLOAT16)
        return vf_load_bfloat16((const uint16_t *)array + index);
    if (dtype == STQ_FLOAT16)
        return vf_load_float16((const uint16_t *)array + index);
    return vf_load((const float *)array + index);
}

INLINE void store_parameter(void *array, int index, vfloat value, vint word, const uint32_t dtype) {
    if (dtype == STQ_BFLOAT16)
        vf_store_bfloat16((uint16_t *)array + index, value, word);
    else if (dtype == STQ_FLOAT16)
        vf_store_float16((uint16_t *)array + index, value);
    else
        vf_store((float *)array + index, value);
}

/* `count` elements to float32; zeros follow to 128. */
static void load_array(float *to, const void *from, uint32_t dtype, int count) {
    if (count < STQ_BLOCK) {
        for (int i = 0; i < STQ_BLOCK; i++)
            to[i] = i < count ? stq_load_float(from, dtype, i) : 0.0f;
    } else if (dtype == STQ_BFLOAT16) {
        for (int i = 0; i < STQ_BLOCK; i += LANES)
            vf_store(to + i, load_float(from, i, STQ_BFLOAT16));
    } else {
        for (int i = 0; i < STQ_BLOCK; i += LANES)
            vf_store(to + i, load_float(from, i, STQ_FLOAT16));
    }
}

/* `key` is the block's of the stream of the parameters' stochastic rounding. */
static void store_array(void *to, const float *from, uint32_t dtype, int count, uint32_t key) {
    if (count < STQ_BLOCK) {
        for (int i = 0; i < count; i++) {
            uint32_t pair = stq_random_pair(key, (uint32_t)i / 2);
            stq_store_float(to, dtype, i, from[i], i % 2 == 0 ? pair & 0xffffu : pair >> 16);
        }
    } else if (dtype == STQ_BFLOAT16) {
        const mixer mix = make_mixer();
        for (int i = 0; i < STQ_BLOCK; i += 2 * LANES) {
            vint pairs = random_pairs(key, i / 2, &mix);
            for (int half = 0; half < 2; half++)
                store_parameter(to, i + half * LANES, vf_load(from + i + half * LANES),
                                vi_words(pairs, half, mix.words), STQ_BFLOAT16);
        }
    } else {
        for (int i = 0; i < STQ_BLOCK; i += LANES)
            store_parameter(to, i, vf_load(from + i), vi_all(0), STQ_FLOAT16);
    }
}

/* ---- One block ---- */

static uint32_t item_key(const stq_item *item, const stq_coefficients *c, uint32_t stream) {
    return stq_hash(c->step_key ^ (item->tensor * 0x85ebca6bu + stream));
}

/* What stq_block_key hashes at last. */
INLINE uint32_t block_key(const item_plan *plan, uint32_t item_key, int64_t block) {
    return item_key + (uint32_t)(plan->item->first_block + block) * 0x9e3779b9u;
}

/* Element 0 of a block. */
INLINE void *element(const void *array, uint32_t dtype, int64_t block) {
    return (uint8_t *)array + block * STQ_BLOCK * (dtype == STQ_FLOAT32 ? 4 : 2);
}

/* True if the chunk's parameters or gradients are worked on in the workspace. */
INLINE bool in_workspace(const workspace *work, uint32_t dtype) {
    return dtype != STQ_FLOAT32 || work->count < STQ_BLOCK;
}

/* The range of v of a shared or a partial block. The zeros after a partial block's values keep code 0 and take no part.
 */
static void find_range(workspace *work, int block) {
    float *m = work->m[block], *v = work->v[block];
    uint32_t largest = 0, lowest = UINT32_MAX;
    for (int i = 0; i < work->count; i++) {
        uint32_t bits = stq_float_bits(v[i]);
        largest = bits > largest ? bits : largest;
        lowest = bits < lowest ? bits : lowest;
    }
    for (int i = work->count; i < STQ_BLOCK; i++)
        m[i] = v[i] = 0.0f;
    work->v_largest[block] = largest;
    work->v_lowest[block] = lowest;
}

/* The scale words of the chunk's blocks, each in the upper half of a float; words after the last one are 0. */
INLINE void load_scale_words(float *to, const workspace *work, const stq_planes *planes) {
    uint16_t words[CHUNK_LANES] = {0};
    if (work->blocks == CHUNK) /* the usual case, and then a single move */
        memcpy(words, planes->scales + work->first, CHUNK * sizeof *words);
    else
        memcpy(words, planes->scales + work->first, (size_t)work->blocks * sizeof *words);
    for (int i = 0; i < CHUNK; i += LANES)
        vf_store(to + i, vf_load_bfloat16(words + i));
}

/* What the old codes' scale words stand for, the chunk's blocks side by side: see stq_m_scale and stq_v_lattice. */
static void read_scales(workspace *work, const item_plan *plan) {
    const stq_planes *m_in = &plan->item->m_in, *v_in = &plan->item->v_in;
    bool m_coded = stq_is_coded(m_in->bits), v_coded = stq_is_coded(v_in->bits);
    _Alignas(64) float v_words[CHUNK_LANES];
    if (m_coded)
        load_scale_words(work->m_scale, work, m_in);
    if (v_coded)
        load_scale_words(v_words, work, v_in);
    for (int i = 0; i < CHUNK; i += LANES) {
        vfloat lowest = vf_all(plan->m_in.lowest);
        vf_store(work->m_lowest + i, m_coded ? vf_multiply(lowest, vf_load(work->m_scale + i)) : lowest);
        if (!v_coded)
            continue;
        vint word = vi_shift_right(vi_bits(vf_load(v_words + i)), 16);
        vi_store(work->v_low + i, vi_shift_left(vi_shift_right(word, 4), 19));
        vi_store(work->v_shift + i, vi_add(vi_and(vi_shift_right(word, 1), vi_all(7)), vi_all(plan->v_finest)));
        vi_store(work->v_first + i, vi_and_not(word, vi_all(1)));
    }
}

/* Fills the codes or the floats that the moments are made from. */
static void read_states(workspace *work, const item_plan *plan) {
    const stq_item *item = plan->item;
    for (int i = 0; i < work->blocks; i++) {
        if (plan->m_from_floats)
            decode_m(work->m[i], &plan->m_in, &item->m_in, work->first + i, work->count);
        if (plan->v_from_floats)
            decode_v(work->v[i], &item->v_in, work->first + i, work->count);
    }
    if (plan->shared && work->count < STQ_BLOCK)
        memset(work->v[0], 0, sizeof work->v[0]);
    if (plan->shared)
        stq_shared_values(work->v[0], &item->v_in, item->cols, (item->first_block + work->first) * STQ_BLOCK,
                          work->blocks * work->count);
    if (plan->from_planes)
        return;
    if (!plan->m_from_floats)
        plan->m_in.unpack(work->m_codes[0], &item->m_in, work->first, work->blocks);
    if (!plan->v_from_floats && !plan->shared)
        plan->unpack_v(work->v_codes[0], &item->v_in, work->first, work->blocks);
}

/* Blocks `first` to `end` - 1 or as many as make a chunk: whole ones, or a partial one alone. */
static void set_chunk(workspace *work, int64_t first, int64_t end, int64_t count) {
    int64_t whole = count / STQ_BLOCK;
    int64_t left = (end < whole ? end : whole) - first;
    work->first = first;
    work->blocks = left > CHUNK ? CHUNK : left > 0 ? (int)left : 1;
    work->count = left > 0 ? STQ_BLOCK : (int)(count % STQ_BLOCK);
}

/* Decodes a chunk and makes new moments and parameters. */
static void begin_chunk(workspace *work, const item_plan *plan) {
    const stq_item *item = plan->item;
    float *parameter = element(item->parameter, item->parameter_type, work->first);
    const float *gradient = element(item->gradient, item->gradient_type, work->first);
    if (in_workspace(work, item->parameter_type)) {
        for (int i = 0; i < work->blocks; i++)
            load_array(work->p[i], element(parameter, item->parameter_type, i), item->parameter_type, work->count);
        parameter = work->p[0];
    }
    if (in_workspace(work, item->gradient_type)) {
        for (int i = 0; i < work->blocks; i++)
            load_array(work->g[i], element(gradient, item->gradient_type, i), item->gradient_type, work->count);
        gradient = work->g[0];
    }
    read_states(work, plan);
    read_scales(work, plan);
    set_keys(work, block_key(plan, plan->v_key, work->first));
    plan->advance(work, parameter, gradient, plan);
    for (int i = 0; (plan->shared || work->count < STQ_BLOCK) && i < work->blocks; i++)
        find_range(work, i);
}

/* Error compensation: the share of m's rounding error that is applied to the parameter now. */
static void compensate(const workspace *work, const item_plan *plan, float *parameter) {
    const stq_coefficients *c = plan->coefficients;
    const vfloat epsilon = vf_all(c->epsilon), minus_share = vf_all(-c->step_size * c->compensation);
    for (int block = 0; block < work->blocks; block++) {
        _Alignas(64) float coded[STQ_BLOCK];
        decode_m(coded, &plan->m_out, &plan->item->m_out, work->first + block, work->count);
        for (int i = 0; i < STQ_BLOCK; i += LANES) {
            vfloat m = vf_load(work->m[block] + i);
            vfloat error = vf_zero_where_zero(m, vf_subtract(m, vf_load(coded + i)));
            vfloat denominator = vf_add(vf_square_root(vf_load(work->v[block] + i)), epsilon);
            float *p = parameter + block * STQ_BLOCK + i;
            vf_store(p, vf_fma(minus_share, vf_divide(error, denominator), vf_load(p)));
        }
    }
}

/* Encodes the new moments of a begun chunk and stores what is still in the workspace. */
static void finish_chunk(workspace *work, const item_plan *plan) {
    const stq_item *item = plan->item;
    prepare_m(work);
    if (stq_is_coded(item->v_out.bits))
        prepare_v(work, item->v_out.bits);
    plan->encode_m(work, &item->m_out);
    plan->encode_v(work, &item->v_out);
    float *parameter = element(item->parameter, item->parameter_type, work->first);
    bool apart = in_workspace(work, item->parameter_type);
    if (plan->m_out.unpack != NULL)
        compensate(work, plan, apart ? work->p[0] : parameter);
    for (int i = 0; apart && i < work->blocks; i++)
        store_array(element(parameter, item->parameter_type, i), work->p[i], item->parameter_type, work->count,
                    stq_hash(block_key(plan, plan->parameter_key, work->first + i)));
}

/* Sets how the moments come about. Codes of both, or codes of m and means of v, go straight into the arithmetic. */
static void plan_sources(item_plan *plan, uint32_t m_in, uint32_t v_in) {
    bool m_coded = stq_is_coded(m_in), v_coded = stq_is_coded(v_in);
    plan->shared = stq_is_shared(v_in);
    if (plan->shared)
        plan->advance = !m_coded          ? advance_floats_shared
                        : is_narrow(m_in) ? advance_narrow_shared
                                          : advance_wide_shared;
    else
        plan->advance = m_coded && v_coded ? advance_stages[is_narrow(m_in)][is_narrow(v_in)] : advance_floats;
#if LOOKS_UP_PLANES
    plan->from_planes = m_in == v_in && (m_in == 4 || m_in == 5);
    if (plan->from_planes)
        plan->advance = m_in == 4 ? advance_nibbles : advance_fives;
#endif
    plan->m_from_floats = !m_coded || !(v_coded || plan->shared);
    plan->v_from_floats = !plan->shared && !(m_coded && v_coded);
    plan->unpack_v = v_coded ? unpack_stages[v_in] : NULL;
    plan->v_finest = stq_v_finest(v_in) - (plan->from_planes ? 0 : alignment(v_in) - v_in);
    plan->m_in = make_m_decoder(m_in);
}

static item_plan make_plan(const stq_item *item, const stq_coefficients *c) {
    uint32_t m_out = item->m_out.bits, v_out = item->v_out.bits;
    bool compensated = c->compensation != 0.0f && m_out != STQ_BITS_FLOAT32;
    item_plan plan = {
        .item = item,
        .coefficients = c,
        .m_out = make_m_decoder(compensated ? m_out : 0),
        .encode_m = m_out == STQ_BITS_FLOAT32 ? store_m_float32 : m_encoders[m_out],
        .encode_v = v_out == STQ_BITS_FLOAT32 ? store_v_float32
                    : stq_is_coded(v_out)     ? v_encoders[v_out]
                                              : keep_v,
        .v_key = item_key(item, c, STQ_STREAM_SECOND_MOMENT),
        .parameter_key = item_key(item, c, STQ_STREAM_PARAMETER),
    };
    plan_sources(&plan, item->m_in.bits, item->v_in.bits);
    return plan;
}

static __attribute__((noinline)) void step_coded(const stq_item *item, const stq_coefficients *c, int64_t first_block,
                                                 int64_t end_block) {
    item_plan plan = make_plan(item, c);
    workspace work;
    for (int64_t block = first_block; block < end_block; block += work.blocks) {
        set_chunk(&work, block, end_block, item->count);
        begin_chunk(&work, &plan);
        finish_chunk(&work, &plan);
    }
}

#include "quant/plain_template.h"

/* ---- The table's functions ---- */

static void step(const stq_item *item, const stq_coefficients *coefficients, int64_t first_block, int64_t end_block) {
    uint64_t mode = stq_float_mode_set();
    if (stq_is_plain(item))
        step_float32(item, coefficients, first_block, end_block);
    else
        step_coded(item, coefficients, first_block, end_block);
    stq_float_mode_restore(mode);
}

/* Copies a chunk's values and finds their ranges. */
static void load_chunk(workspace *work, const float *values, bool second) {
    float *to = second ? work->v[0] : work->m[0];
    memcpy(to, values + work->first * STQ_BLOCK, (size_t)(work->blocks * work->count) * sizeof(float));
    if (work->count < STQ_BLOCK)
        memset(to + work->count, 0, (size_t)(STQ_BLOCK - work->count) * sizeof(float));
    for (int block = 0; block < work->blocks; block++) {
        vint magnitude = vi_all(0), largest = vi_all(0), lowest = vi_all(UINT32_MAX);
        for (int i = 0; i < STQ_BLOCK; i += LANES) {
            vfloat value = vf_load(to + block * STQ_BLOCK + i);
            magnitude = vi_larger(magnitude, vi_magnitude(value));
            largest = vi_larger(largest, vi_bits(value));
            lowest = vi_smaller(lowest, vi_bits(value));
        }
        keep_ranges(work, block, magnitude, largest, lowest);
    }
    find_ranges(work);
    if (second && work->count < STQ_BLOCK)
        find_range(work, 0);
}

static void make_all_words(workspace *work) {
    const mixer mix = make_mixer();
    for (int block = 0; block < work->blocks; block++)
        for (int i = 0; i < STQ_BLOCK; i += 2 * LANES)
            make_words(work, block, i, &mix);
}

static __attribute__((noinline)) void encode_blocks(const stq_planes *planes, stq_state state, const float *values,
                                                    int64_t count, int64_t first_block, int64_t end_block,
                                                    const stq_random *random) {
    bool second = state == STQ_SECOND_MOMENT;
    stq_item item = {.tensor = second ? random->tensor : 0};
    stq_coefficients coefficients = {.step_key = second ? stq_step_key(random->seed, random->step) : 0};
    uint32_t key = item_key(&item, &coefficients, STQ_STREAM_SECOND_MOMENT);
    workspace work;
    for (int64_t block = first_block; block < end_block; block += work.blocks) {
        set_chunk(&work, block, end_block, count);
        load_chunk(&work, values, second);
        if (second) {
            set_keys(&work, key + (uint32_t)(random->first_block + block) * 0x9e3779b9u);
            make_all_words(&work);
            prepare_v(&work, planes->bits);
            v_encoders[planes->bits](&work, planes);
        } else {
            prepare_m(&work);
            m_encoders[planes->bits](&work, planes);
        }
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
    m_decoder decoder = make_m_decoder(planes->bits);
    for (int64_t block = first_block; block < end_block; block++) {
        _Alignas(64) float room[STQ_BLOCK];
        int64_t left = count - block * STQ_BLOCK;
        int valid = left < STQ_BLOCK ? (int)left : STQ_BLOCK;
        if (state == STQ_FIRST_MOMENT)
            decode_m(room, &decoder, planes, block, valid);
        else
            decode_v(room, planes, block, valid);
        memcpy(values + block * STQ_BLOCK, room, (size_t)valid * sizeof(float));
    }
}

static void decode(float *values, const stq_planes *planes, stq_state state, int64_t count, int64_t first_block,
                   int64_t end_block) {
    uint64_t mode = stq_float_mode_set();
    decode_blocks(values, planes, state, count, first_block, end_block);
    stq_float_mode_restore(mode);
}
