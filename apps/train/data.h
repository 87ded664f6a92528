// Where the training loop gets its batches from.
#ifndef STQUANT_TRAIN_DATA_H
#define STQUANT_TRAIN_DATA_H

#include <stdint.h>

#include "train/failure.h"
#include "train/model.h"

struct batch_source;

struct batch_source_operations {
    // The training batch at `position` (0, 1, 2, ...): a function of the seed and the position alone, so
    // that a run can go on from anywhere. Valid until the next call on the source.
    void (*training)(struct batch_source *source, int64_t position, struct batch *batch);
    // Batch `index` of the fixed validation set, 0 to validation_batches - 1; the last may be smaller.
    void (*validation)(struct batch_source *source, int64_t index, struct batch *batch);
    void (*destroy)(struct batch_source *source);
};

// The first member of every source.
struct batch_source {
    const struct batch_source_operations *operations;
    int64_t validation_batches;
    int64_t items;    // of one training batch, for speeds
    const char *unit; // what they are: "tokens" or "images"
};

struct text_source_settings {
    int64_t batch, length;      // B, T: of this rank
    int64_t rank, ranks;        // training batches are cut into one part a rank; 0 ranks count as 1
    double validation_share;    // the last part of the text, in (0, 1); 1 where nothing is trained
    int64_t validation_batches; // at most; windows of the validation text do not overlap
    uint64_t seed;
};

// Tokens in a row: the bytes of a text, or what a token file maps.
struct sequence {
    const void *tokens; // (count), uint8_t, uint16_t or int32_t
    int token_bytes;    // 1, 2 or 4
    int64_t count;
};

// Training windows start anywhere in the first part; validation windows are spread evenly over the last
// part. What `sequence` points to must outlive the source. Refuses a text of which
// either part is shorter than a sequence. On failure *source is null.
enum app_status text_source_create(const struct sequence *sequence, const struct text_source_settings *settings,
                                   struct batch_source **source);

// Tokens of the training part.
int64_t sequence_training_count(const struct sequence *sequence, double validation_share);

#endif
