// Packed weights of a quantization-aware run (docs/qat.md): `stquant convert --to packed`.
#ifndef STQUANT_PACKED_H
#define STQUANT_PACKED_H

#include "train/failure.h"

// Reads the checkpoint `from` of such a run and writes a checkpoint without optimizer states into the folder `to`:
// quantized weights as codes and steps, everything else as it is.
enum app_status packed_write(const char *from, const char *to);

#endif
