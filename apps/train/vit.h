// Vision Transformer (Dosovitskiy et al., 2020): an image is cut into patches, each a token by a linear layer; a class
// token stands before them, positions are learned, the blocks are GPT-2's without the causal mask, and the
// class token's last state is classified by a linear layer after a last layer norm.
#ifndef STQUANT_TRAIN_VIT_H
#define STQUANT_TRAIN_VIT_H

#include <stdint.h>

#include "train/model.h"
#include "train/transformer.h"

struct vit_config {
    int64_t layers;   // L
    int64_t width;    // C, a multiple of heads
    int64_t heads;    // H
    int64_t patch;    // side of a patch, in pixels
    int64_t channels; // of an image: 1 or 3
    int64_t rows;     // height of an image, a multiple of the patch
    int64_t columns;  // width of an image, a multiple of the patch
    int64_t classes;
    double dropout;     // rate after the embedding and after each projection into the residual stream
    stq_qat_config qat; // how the blocks' linear layers are fake-quantized; bits 0: not at all
};

// Refuses sizes that make no model, in a sentence that names the option.
enum app_status vit_check(const struct vit_config *config);

// Describes the tensors without allocating them. The set is released by the caller.
enum app_status vit_describe(const struct vit_config *config, struct parameter_set *set);

// Bytes of activations for a batch of `images`.
int64_t vit_activation_bytes(const struct vit_config *config, int64_t images);

// A model with initial weights for batches of up to `images`, on `threads` threads. Dropout takes its masks from the
// seed and from batch.position. On failure *model is null.
enum app_status vit_create(const struct vit_config *config, int64_t images, int threads, uint64_t seed,
                           struct model **model);

#endif
