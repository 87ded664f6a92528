/* reference.h - block codecs of the scalar reference. `block` counts from the planes' start; `count` is 1 to 128. */
#ifndef STQ_REFERENCE_H
#define STQ_REFERENCE_H

#include "quant/layout.h"

void stq_reference_encode_m(const stq_planes *planes, int64_t block, const float *m, int count);
void stq_reference_encode_v(const stq_planes *planes, int64_t block, const float *v, int count, uint32_t block_key);
void stq_reference_decode_m(float *m, const stq_planes *planes, int64_t block, int count, bool *lowest);
void stq_reference_decode_v(float *v, const stq_planes *planes, int64_t block, int count);

#endif
