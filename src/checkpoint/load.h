/* load.h - a saved state in memory. */
#ifndef STQ_LOAD_H
#define STQ_LOAD_H

#include "checkpoint/reader.h"

/* Refuses a state that the checkpoint does not have. */
stq_status stq_check_state(const stq_checkpoint *c, size_t tensor, stq_state state);

/* Reads one state of one slice into fresh planes; to be released on failure, too. */
stq_status stq_read_slice_planes(const stq_checkpoint *c, const stq_slice *slice, stq_state state, stq_planes *planes);

void stq_release_planes(stq_planes *planes);

#endif
