/*
 * publish.h - the folder of a run: names of checkpoints, publication, removal of old ones.
 *
 * A checkpoint is written into .step-N.RUN.partial beside the published ones. Whoever finds all its parts complete
 * writes the index and renames the folder to step-N; that one rename is what makes it visible. Ranks need no
 * communication for it, only the folder.
 */
#ifndef STQ_PUBLISH_H
#define STQ_PUBLISH_H

#include <stquant/base.h>

/* Room for the name of a checkpoint's folder. */
enum { STQ_STEP_NAME = 80 };

void stq_step_name(int64_t step, char *name);                  /* step-00000100 */
void stq_partial_name(int64_t step, uint64_t run, char *name); /* .step-00000100.0123456789abcdef.partial */

/* One run's checkpoint that is being made. */
typedef struct stq_publication {
    int folder;       /* the run's, open */
    const char *path; /* its path, for messages */
    int64_t step;
    uint32_t ranks;
    uint64_t run;
} stq_publication;

/* Publishes if all parts are complete. *published: it is visible now, by whomever; with an error where the folder could
 * not be synced, so that a power cut may undo it. */
stq_status stq_publish(const stq_publication *publication, bool *published);

/* After a publication: removes the oldest published checkpoints beyond `keep` (0 = keep all) of those up to this step,
 * and what this run gave up before (a part could not be written). What cannot be removed stays. */
void stq_prune(const stq_publication *publication, uint32_t keep);

/* Removes what interrupted saves of other runs than `run` left in the folder. */
void stq_remove_leftovers(int folder, uint64_t run);

/* Steps of the published checkpoints below `below`, newest first, in fresh memory. */
stq_status stq_list_steps(int folder, const char *path, int64_t below, int64_t **steps, size_t *count);

#endif
