// The kernels for any processor.
#define KERNELS kernels_generic
#define KERNELS_NAME "generic"
#include "train/kernels_template.h"
