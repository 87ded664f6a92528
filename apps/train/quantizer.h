// Quantization-aware training of a model's linear layers: the model computes with fake-quantized weights, while the
// optimizer trains the float weights behind them and one step for each output (stquant/qat.h). Embeddings, norms,
// biases and the head stay as they are.
#ifndef STQUANT_TRAIN_QUANTIZER_H
#define STQUANT_TRAIN_QUANTIZER_H

#include <stquant/qat.h>

#include "train/failure.h"
#include "train/memory.h"
#include "train/parameters.h"

struct quantizer;

// A linear layer's part in it.
struct quantized_linear {
    struct quantizer *quantizer;
    const struct parameter *weight; // (inputs, outputs)
    const struct parameter *steps;  // (outputs)
    float *values;                  // (inputs, outputs), fake-quantized: what the layer computes with
};

// Of a whole model. The library's rows are outputs, so weights and gradients go through copies of this layout.
struct quantizer {
    stq_qat_config config;
    struct quantized_linear *layers; // (count), in the order of their weights; owned
    int count;
    float *weight_rows, *gradient_rows; // (outputs, inputs) of the largest layer
    float *step_gradient;               // (outputs) of the widest layer
    stq_status status;                  // of the backward passes since quantizer_status was asked
};

// What the estimators are called, by their numbers (stq_qat_estimator).
enum { QUANTIZER_ESTIMATORS = 3 };
extern const char *const quantizer_estimators[QUANTIZER_ESTIMATORS];

// The estimator of that name; -1 where there is none, or no name (null).
int quantizer_estimator(const char *name);

// Refuses what makes no quantizer, in a sentence.
enum app_status quantizer_check(const stq_qat_config *config);

// Whether this tensor is a weight that is quantized: the matrices of the transformer blocks.
int quantizer_applies(const struct parameter *parameter);

// Writes the name of a quantized weight with another last part: "h.0.attn.c_attn.weight" becomes "h.0.attn.c_attn" and
// `suffix`, as ".steps".
void quantizer_name(const char *weight, const char *suffix, char name[64]);

// Appends one vector of steps for each weight that is quantized, behind all other tensors: these keep their places.
// Returns below 0 without memory.
int quantizer_add_steps(struct parameter_set *set);

// Describes (or places) the buffers for blocks of this width; see memory.h. Without `layers` only counts.
void quantizer_place(struct quantizer *quantizer, struct arena *arena, int64_t blocks, int64_t width);

// Makes `layers` for so many transformer blocks. Before quantizer_place.
enum app_status quantizer_create(struct quantizer *quantizer, const stq_qat_config *config, int64_t blocks);

// Finds the layers' tensors, and sets the steps from the weights.
enum app_status quantizer_bind(struct quantizer *quantizer, const struct parameter_set *set);

// Sets the steps from the weights as they are.
enum app_status quantizer_start(const struct quantizer *quantizer);

// Quantizes the weights as they are into `values`: before a forward pass.
enum app_status quantizer_refresh(const struct quantizer *quantizer);

// Takes weight_gradient rows (outputs, inputs) in quantizer->gradient_rows, of the quantized weights, on to the
// gradients of weights and steps, which are added to.
void quantizer_backward(const struct quantized_linear *layer);

// APP_OK, or the first failure of the backward passes since the last call.
enum app_status quantizer_status(struct quantizer *quantizer);

void quantizer_release(struct quantizer *quantizer);

// ---- Parameter sets without a model ----

// Replaces every quantized weight by its fake-quantized values. The set has steps.
enum app_status quantizer_round(const struct parameter_set *set, const stq_qat_config *config);

// Packs a weight into `codes` (stq_qat_packed_bytes of outputs x inputs), row after row of outputs.
enum app_status quantizer_pack(const struct parameter *weight, const struct parameter *steps,
                               const stq_qat_config *config, uint8_t *codes);

// The weight (inputs, outputs) from its codes and steps: the bytes that quantizer_refresh gives.
enum app_status quantizer_unpack(const struct parameter *weight, const float *steps, const stq_qat_config *config,
                                 const uint8_t *codes);

#endif
