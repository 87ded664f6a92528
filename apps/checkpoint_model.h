// The model that a checkpoint holds: its kind and shape, from the checkpoint's own description, from a config.json
// beside it, or from the shapes of its arrays.
#ifndef STQUANT_CHECKPOINT_MODEL_H
#define STQUANT_CHECKPOINT_MODEL_H

#include <jansson.h>
#include <stquant/checkpoint.h>

#include "train/gpt2.h"
#include "train/vit.h"

struct checkpoint_model {
    stq_checkpoint *checkpoint;
    stq_checkpoint_info info;
    json_t *application; // null for files of another origin
    int is_vit;          // else GPT-2
    struct gpt2_config gpt2;
    struct vit_config vit;
    const char *prefix; // before the parameters' names: "" or "transformer."
    stq_qat_config qat; // of its weights; bits 0 where they are used as they are
    int is_packed;      // 1: quantized weights are codes and steps (docs/qat.md); gpt2.qat and vit.qat have bits 0
};

// Opens `path`: a run's folder, a checkpoint's, one of another program, or a file. `heads` is used where nothing tells
// the number of heads (0: one for 64 columns). On failure nothing stays open.
enum app_status checkpoint_model_open(const char *path, int64_t heads, struct checkpoint_model *model);

// The name of the codes of a quantized weight.
#define CODES_SUFFIX ".codes"

// Reads the parameters, unpacking packed ones; those of gpt2 or vit, or of their description.
enum app_status checkpoint_model_load(const struct checkpoint_model *checkpoint, const struct parameter_set *set);

// Makes the model for batches of up to `examples` (of `length` tokens) and reads its parameters.
enum app_status checkpoint_model_create(const struct checkpoint_model *checkpoint, int64_t examples, int64_t length,
                                        int threads, struct model **model);

// Puts a number of the application's description into *value, which stays as it is where there is none. 0, and *value
// as it was, where it is no number, outside the range or, with `whole`, no integer: files come from anywhere.
int checkpoint_model_number(const struct checkpoint_model *model, const char *key, int whole, double minimum,
                            double maximum, double *value);

void checkpoint_model_close(struct checkpoint_model *model);

#endif
