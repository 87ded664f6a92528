#include "train/ranks.h"

#include <stdio.h>

#ifdef STQUANT_APPS_MPI
#include <mpi.h>
#include <stquant/comm_mpi.h>
#else
#include <stdlib.h>
#endif

#ifdef STQUANT_APPS_MPI

enum app_status ranks_open(struct ranks *ranks, double timeout) {
    *ranks = (struct ranks){.count = 1};
    if (!stq_comm_mpi_launched()) {
        return APP_OK;
    }
    if (stq_comm_create_mpi(&ranks->comm, timeout) != STQ_OK) {
        return app_library_failure();
    }
    ranks->rank = stq_comm_rank(ranks->comm);
    ranks->count = stq_comm_ranks(ranks->comm);
    if (ranks->rank != 0 && !freopen("/dev/null", "w", stdout)) {
        return app_fail(APP_FAILED, "Rank %d could not silence its output.", ranks->rank);
    }
    return APP_OK;
}

enum app_status ranks_local(const struct ranks *ranks, int *local) {
    MPI_Comm host;
    *local = 0;
    if (!ranks->comm) {
        return APP_OK;
    }
    if (MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host) != MPI_SUCCESS) {
        return app_fail(APP_FAILED,
                        "MPI does not tell rank %d which ranks share its host; name its GPU with --device "
                        "cuda:N.",
                        ranks->rank);
    }
    MPI_Comm_rank(host, local);
    MPI_Comm_free(&host);
    return APP_OK;
}

void ranks_hurry(int seconds) { stq_comm_mpi_limit_waits(seconds); }

void ranks_close(struct ranks *ranks, int exit_status) {
    if (ranks->comm && exit_status != 0) {
        fflush(NULL);
        stq_comm_mpi_abort(exit_status);
    }
    stq_comm_destroy(ranks->comm);
    *ranks = (struct ranks){.count = 1};
}

#else

enum app_status ranks_open(struct ranks *ranks, double timeout) {
    (void)timeout;
    *ranks = (struct ranks){.count = 1};
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");
    if (size && atoi(size) > 1) {
        return app_fail(APP_FAILED, "This stquant was built without MPI; install libopenmpi-dev and build again.");
    }
    return APP_OK;
}

enum app_status ranks_local(const struct ranks *ranks, int *local) {
    (void)ranks;
    *local = 0;
    return APP_OK;
}

void ranks_hurry(int seconds) { (void)seconds; }

void ranks_close(struct ranks *ranks, int exit_status) {
    (void)exit_status;
    *ranks = (struct ranks){.count = 1};
}

#endif

enum app_status ranks_sum(const struct ranks *ranks, double *numbers, int count, const char *what) {
    if (!ranks->comm) {
        return APP_OK;
    }
    if (stq_comm_all_reduce(ranks->comm, numbers, count, STQ_COMM_FLOAT64, STQ_COMM_SUM, what) != STQ_OK) {
        return app_library_failure();
    }
    return APP_OK;
}
