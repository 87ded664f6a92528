/*
 * coder_template.h - the part of the vector layer (kernel_template.h) that instruction sets share whose encoding keeps
 * no constants in registers and packs codes in their own order.
 */

/* Constants of the encoding: none. */
typedef struct coder {
    char none;
} coder;

INLINE coder make_coder(uint32_t offset, uint32_t bits) {
    (void)offset, (void)bits;
    return (coder){0};
}

INLINE vfloat one_with_sign(const coder *constants, vfloat x) {
    (void)constants;
    return vf_copy_sign(vf_all(1.0f), x);
}

/* Where code i of a block lies before pack. */
INLINE uint32_t code_place(uint32_t i) { return i; }
