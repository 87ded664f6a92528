/* stquant/stquant.h - the whole library: adaptive low-bit states for Adam (STQuant, arXiv 2604.06836). */
#ifndef STQUANT_STQUANT_H
#define STQUANT_STQUANT_H

#include <stquant/adamw.h>
#include <stquant/base.h>
#include <stquant/checkpoint.h>
#include <stquant/comm.h>
#include <stquant/policy.h>
#include <stquant/qat.h>
#include <stquant/quant.h>
#include <stquant/score.h>
#include <stquant/sharded.h>

#endif
