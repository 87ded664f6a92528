// The ranks of a run that mpirun started; one rank without it.
#ifndef STQUANT_TRAIN_RANKS_H
#define STQUANT_TRAIN_RANKS_H

#include <stdint.h>
#include <stquant/comm.h>

#include "train/failure.h"

struct ranks {
    stq_comm *comm; // null with one rank
    int rank, count;
};

// Joins the other ranks if there are any. Ranks other than 0 are silent from then on but for errors. `timeout` is what
// one operation may wait for the others, in seconds.
enum app_status ranks_open(struct ranks *ranks, double timeout);

// *local: this rank's number among those of its host; 0 with one rank. Collective.
enum app_status ranks_local(const struct ranks *ranks, int *local);

// For signal handlers: from now on no wait for the other ranks takes longer than `seconds`.
void ranks_hurry(int seconds);

// Leaves. After a failure the other ranks are ended at once with this exit status: they would wait for one that is
// gone.
void ranks_close(struct ranks *ranks, int exit_status);

// Sums `count` numbers over the ranks, in place. `what` names them in a failure's sentence.
enum app_status ranks_sum(const struct ranks *ranks, double *numbers, int count, const char *what);

#endif
