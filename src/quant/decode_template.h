/* decode_template.h - codes to values by arithmetic, for widths and instruction sets without a table in registers. */

/* Levels of m: see stq_m_level and stq_m_decode. */
INLINE vfloat m_of_codes(vint code, vfloat scales, const uint32_t bits) {
    vint t = vi_and(vi_shift_left(code, 25 - bits), vi_all(0x00ffffffu));
    t = vi_add(t, vi_all(STQ_ONE_BITS + (1u << (24 - bits))));
    vfloat level = vf_multiply(vf_subtract(vf_from_bits(t), vf_all(1.0f)), vf_all(1.0f / 3.0f));
    return vf_copy_sign(vf_multiply(level, scales), vf_from_bits(vi_shift_left(code, 32 - bits)));
}

/* Nodes of v: see stq_v_decode. */
INLINE vfloat v_of_codes(vint code, vint low, vcount shift, vint first) {
    return vf_from_bits(vi_zero_where_less(code, first, vi_add(low, vi_shift_left_by(code, shift))));
}
