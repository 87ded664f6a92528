/* decode_template.h - codes of 8 bits' alignment to values by arithmetic, where there is no table in registers. */

/* Levels of m, see stq_m_level and stq_m_decode: `offset` is the bits of 1 and half a cell. */
INLINE vfloat m_by_arithmetic(vint code, vfloat scales, vint offset) {
    vint t = vi_add(vi_shift_left(vi_and(code, vi_all(0x7f)), 17), offset);
    vfloat level = vf_multiply(vf_subtract(vf_from_bits(t), vf_all(1.0f)), vf_all(1.0f / 3.0f));
    return vf_copy_sign(vf_multiply(level, scales), vf_from_bits(vi_shift_left(code, 24)));
}

/* Nodes of v, see stq_v_decode; any alignment, with `shift` less by as much as codes are aligned upwards. */
INLINE vfloat v_by_arithmetic(vint code, vint low, vcount shift, vint first) {
    return vf_from_bits(vi_zero_where_less(code, first, vi_add(low, vi_shift_left_by(code, shift))));
}
