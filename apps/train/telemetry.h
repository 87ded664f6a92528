// What the log tells of the tensors when widths were decided.
#ifndef STQUANT_TRAIN_TELEMETRY_H
#define STQUANT_TRAIN_TELEMETRY_H

#include <jansson.h>

#include "train/optimizer.h"

// Adds to a line of the log: "tensors", a list of {"name", "n", "r", "zone", "m_bits", "v_bits", "m_rms", "v_rms"}, and
// "n_average" and "r_average", the boundaries of the zones. m_rms is the root mean square of the first moment
// as it is stored, v_rms the root of the second moment's mean: magnitudes of the gradient over about 1 / (1 - beta)
// steps. Reads every state, in pieces.
void telemetry_add(const struct optimizer *optimizer, json_t *line);

#endif
