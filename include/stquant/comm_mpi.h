/*
 * stquant/comm_mpi.h - the communicator over MPI, in the library stquant-mpi (CMake target stquant::mpi), so that the
 * core does not depend on MPI.
 */
#ifndef STQUANT_COMM_MPI_H
#define STQUANT_COMM_MPI_H

#include <stquant/comm.h>

#ifdef __cplusplus
extern "C" {
#endif

/** True if this process was started by an MPI launcher (mpirun, srun) with more than one rank, told by its environment:
 * MPI itself need not be initialised. */
STQ_API bool stq_comm_mpi_launched(void);

/**
 * A communicator over all ranks of MPI_COMM_WORLD (duplicated). Initialises MPI if nobody has (thread level FUNNELED);
 * then stq_comm_destroy() finalises it too.
 *
 * @param timeout_seconds  how long one operation may wait for the other ranks; 0 = 60
 */
STQ_API stq_status stq_comm_create_mpi(stq_comm **comm, double timeout_seconds);

/** From now on no wait for other ranks, one that is under way included, takes longer than `seconds` (1 or more): a
 * process that was told to end must not hang on one that is dead. May be called in a signal handler; 0 takes it back.
 */
STQ_API void stq_comm_mpi_limit_waits(int seconds);

/** Ends all ranks at once (MPI_Abort) with this exit status, for programs that cannot go on; does nothing without MPI.
 */
STQ_API void stq_comm_mpi_abort(int exit_status);

#ifdef __cplusplus
}
#endif

#endif
