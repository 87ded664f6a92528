/*
 * stquant/checkpoint.h - checkpoints as safetensors files: one file a rank and an index, visible only when whole.
 *
 * A run keeps its checkpoints in one folder, each in a folder of its own: RUN/step-00000100 holds
 * model-00001-of-00001.safetensors and model.safetensors.index.json. docs/format.md describes every byte. Files are
 * never trusted: sizes, offsets, names and checksums are checked before anything is used, and an error names file,
 * tensor and offset.
 *
 * Where the library was built without jansson and xxHash, every function here that returns a status returns
 * STQ_UNSUPPORTED.
 */
#ifndef STQUANT_CHECKPOINT_H
#define STQUANT_CHECKPOINT_H

#include <stquant/adamw.h>
#include <stquant/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Version of the format in docs/format.md; independent of the library's. */
#define STQ_FORMAT_VERSION 1

/** Most dimensions of an array. */
#define STQ_DIMENSIONS 8

/** A parameter (or any other array of the application), or this rank's part of it. */
typedef struct stq_array {
    const char *name;              /**< unique among the arrays, UTF-8, not empty, without control characters */
    stq_dtype type;                /**< element type */
    uint32_t dimensions;           /**< 0 (a scalar) to STQ_DIMENSIONS */
    int64_t shape[STQ_DIMENSIONS]; /**< global shape; each 0 or more */
    int64_t first;                 /**< first element (of the row-major global array) of this part */
    int64_t count;                 /**< elements of this part; all of them for a whole array */
    void *data;                    /**< count elements in host memory, row-major */
} stq_array;

/** A whole array. `shape` has `dimensions` entries; `name` and `data` are not copied. */
STQ_API stq_array stq_array_whole(const char *name, stq_dtype type, uint32_t dimensions, const int64_t *shape,
                                  void *data);

/* ---- Saving ---- */

/** Writes the checkpoints of one run, in a thread of its own. */
typedef struct stq_saver stq_saver;

/** Where and how a saver writes. Zeros but for size and folder suit a single process. */
typedef struct stq_saver_config {
    size_t size;        /**< sizeof(stq_saver_config) */
    const char *folder; /**< of the run; made if missing; copied */
    uint32_t keep;      /**< whole checkpoints to keep, the oldest go first; 0 = all */
    uint32_t rank;      /**< this process, 0 to ranks - 1 */
    uint32_t ranks;     /**< processes that each write a part; 0 counts as 1 */
    uint64_t run;       /**< a number that all ranks of a run share and no earlier run had, so that parts of two runs
                             never meet in one checkpoint; 0 = chosen by the saver (one rank only) */
} stq_saver_config;

/**
 * Opens a saver. Rank 0 makes the folder, locks it (a second run on it is refused) and removes what interrupted runs
 * left half-written; other ranks open theirs afterwards.
 *
 * Errors: STQ_INVALID_ARGUMENT, STQ_IO_ERROR (folder or lock), STQ_OUT_OF_MEMORY; *saver is NULL then.
 */
STQ_API stq_status stq_saver_open(stq_saver **saver, const stq_saver_config *config);

/** Waits for the last save, then frees everything. NULL is allowed. */
STQ_API void stq_saver_close(stq_saver *saver);

/** What one save holds. */
typedef struct stq_save {
    size_t size;                /**< sizeof(stq_save) */
    int64_t step;               /**< 0 or more; names the checkpoint */
    const stq_adamw *optimizer; /**< NULL = no states */
    const stq_array *arrays;    /**< array_count arrays, all that this rank writes */
    size_t array_count;         /**< 0 or more */
    const char *application;    /**< JSON object of the application (model, data position, ...); NULL = {} */
} stq_save;

/**
 * Saves: waits for the previous save, copies everything, and returns; hashing, writing and publishing go on in the
 * saver's thread. A checkpoint of the same step is replaced. The memory of the copy is kept for the next save until the
 * saver is closed.
 *
 * Errors of the copy: STQ_INVALID_ARGUMENT, STQ_OUT_OF_MEMORY. Errors of the writing are told by stq_saver_wait(); they
 * leave every earlier checkpoint as it was.
 */
STQ_API stq_status stq_saver_save(stq_saver *saver, const stq_save *save);

/** True while a save is being written: stq_saver_save() would wait. */
STQ_API bool stq_saver_busy(stq_saver *saver);

/** How the last save went. */
typedef struct stq_save_result {
    int64_t step;         /**< of the save; -1 before the first */
    bool published;       /**< the checkpoint is visible; with several ranks, false until the last one is done */
    uint64_t bytes;       /**< of this rank's file */
    double copy_seconds;  /**< for which stq_saver_save() held the caller up, waiting for a previous save excluded */
    double write_seconds; /**< hashing, writing, syncing, publishing */
} stq_save_result;

/** Waits for the last save and returns its status (STQ_IO_ERROR: disk full, ...). `result` may be NULL. */
STQ_API stq_status stq_saver_wait(stq_saver *saver, stq_save_result *result);

/**
 * Publishes the checkpoint of `step` if all parts of run `run` are complete and nobody has: after a rank died between
 * finishing its part and publishing. *published tells whether it is visible now.
 */
STQ_API stq_status stq_checkpoint_publish(const char *folder, int64_t step, uint32_t ranks, uint64_t run,
                                          bool *published);

/* ---- Reading ---- */

/** An opened checkpoint: headers are read and checked, contents are read on demand. */
typedef struct stq_checkpoint stq_checkpoint;

/**
 * Finds the newest whole checkpoint (index, headers and sizes are right) of a run's folder with a step below `below`
 * (INT64_MAX for any). Writes its path to `path` of `size` bytes. STQ_IO_ERROR if there is none, STQ_CORRUPT if none of
 * those there are is whole, STQ_INVALID_ARGUMENT if the path does not fit.
 */
STQ_API stq_status stq_checkpoint_find(const char *folder, int64_t below, char *path, size_t size);

/**
 * Opens a checkpoint: its folder, a run's folder (the newest whole one), or a single safetensors file of any origin.
 *
 * Errors: STQ_IO_ERROR, STQ_CORRUPT, STQ_UNSUPPORTED (a newer format version, an unknown element type),
 * STQ_OUT_OF_MEMORY; *checkpoint is NULL then.
 */
STQ_API stq_status stq_checkpoint_open(stq_checkpoint **checkpoint, const char *path);

/** Frees everything; NULL is allowed. */
STQ_API void stq_checkpoint_close(stq_checkpoint *checkpoint);

/** What an opened checkpoint is. Pointers are owned by the checkpoint. */
typedef struct stq_checkpoint_info {
    const char *path;        /**< as found */
    int64_t step;            /**< 0 for a file of another origin */
    uint32_t ranks;          /**< parts */
    uint32_t format_version; /**< 0 for a file of another origin */
    size_t array_count;      /**< parameters and the like */
    size_t tensor_count;     /**< tensors of the optimizer; 0 = no states */
    size_t group_count;      /**< groups of hyper-parameters */
    size_t entry_count;      /**< safetensors entries in all files */
    uint64_t bytes;          /**< of all files, index included */
    const char *application; /**< JSON object of the application */
    const char *document;    /**< the whole description of the first part, JSON; "{}" for a file of another origin */
} stq_checkpoint_info;

/** Reads the description; never fails for valid pointers. */
STQ_API stq_status stq_checkpoint_describe(const stq_checkpoint *checkpoint, stq_checkpoint_info *info);

/** Array `index`: name, element type, global shape; first = 0, count = all elements, data = NULL. */
STQ_API stq_status stq_checkpoint_array(const stq_checkpoint *checkpoint, size_t index, stq_array *array);

/** One tensor of the saved optimizer. */
typedef struct stq_checkpoint_tensor {
    stq_tensor tensor;        /**< whole: first = 0; m_bits, v_bits as fixed by the caller then; float32 types */
    stq_tensor_record record; /**< widths, zone, factors */
    uint64_t bytes[2];        /**< of codes, scales or float32 values, by stq_state */
} stq_checkpoint_tensor;

/** Tensor `index` of the optimizer. */
STQ_API stq_status stq_checkpoint_tensor_info(const stq_checkpoint *checkpoint, size_t index,
                                              stq_checkpoint_tensor *tensor);

/** The optimizer's record; STQ_INVALID_ARGUMENT if the checkpoint has no states. */
STQ_API stq_status stq_checkpoint_record(const stq_checkpoint *checkpoint, stq_adamw_record *record);

/** Group `index` of the hyper-parameters. */
STQ_API stq_status stq_checkpoint_group(const stq_checkpoint *checkpoint, size_t index, stq_adamw_group *group);

/** One safetensors entry of one file. */
typedef struct stq_checkpoint_entry {
    const char *name;              /**< in its file */
    const char *file;              /**< the file's name without folder */
    const char *type;              /**< "F32", "U8", ... */
    uint32_t dimensions;           /**< 0 to STQ_DIMENSIONS */
    int64_t shape[STQ_DIMENSIONS]; /**< of this entry */
    uint64_t offset;               /**< of its first byte in the file */
    uint64_t bytes;                /**< its size */
    uint64_t checksum;             /**< XXH3 (64 bits) of its bytes */
    bool has_checksum;             /**< false in files of another origin */
} stq_checkpoint_entry;

/** Entry `index`, by file and offset. */
STQ_API stq_status stq_checkpoint_entry_info(const stq_checkpoint *checkpoint, size_t index,
                                             stq_checkpoint_entry *entry);

/**
 * Reads arrays into `data`, parts of them where first and count say so. Every array must be in the checkpoint, in the
 * same shape; float32 is also made of bfloat16 and float16. Checksums are verified.
 *
 * On failure the contents of the arrays are undefined.
 */
STQ_API stq_status stq_checkpoint_load_arrays(const stq_checkpoint *checkpoint, const stq_array *arrays,
                                              size_t array_count);

/**
 * Puts the saved states into an optimizer over the same tensors (by name and shape; any slices, any rank count). Widths
 * that the optimizer cannot hold are changed (stq_adamw_fit); else it continues byte for byte. float32 states, also
 * PyTorch's as docs/format.md names them, are encoded at the optimizer's widths.
 *
 * *changed (may be NULL) tells whether widths were changed. Errors found before anything was read leave the optimizer
 * as it was; later ones (STQ_CORRUPT contents, STQ_IO_ERROR) leave its states undefined: destroy it.
 */
STQ_API stq_status stq_checkpoint_load_optimizer(const stq_checkpoint *checkpoint, stq_adamw *optimizer, bool *changed);

/** Reads everything and verifies every checksum; the error names file, tensor and offset. */
STQ_API stq_status stq_checkpoint_verify(const stq_checkpoint *checkpoint);

/**
 * 64-bit hash of step, parameters and states, whatever the number of files: two checkpoints with the same hash continue
 * alike. Verifies checksums on the way.
 */
STQ_API stq_status stq_checkpoint_digest(const stq_checkpoint *checkpoint, uint64_t *digest);

/**
 * Signal and expected noise of one rounding of a saved state, m or the root of v: sums of squares over the values, the
 * noise from the width w of each value's cell (w^2 / 12 for nearest rounding, w^2 / 6 for stochastic rounding).
 * 10 log10(signal / noise) is the signal-to-noise ratio in dB; both are 0 for a shared second moment, the noise for
 * float32 states.
 */
STQ_API stq_status stq_checkpoint_noise(const stq_checkpoint *checkpoint, size_t tensor, stq_state state,
                                        double *signal, double *noise);

/**
 * Decodes a whole saved state into `values` (rows * cols float32 values of tensor `index`), from codes, float32 states
 * or PyTorch's moments. Checksums are verified; on failure the contents are undefined.
 */
STQ_API stq_status stq_checkpoint_read_state(const stq_checkpoint *checkpoint, size_t index, stq_state state,
                                             float *values);

/* ---- Plain safetensors files ---- */

/**
 * Writes whole arrays as one safetensors file, under a temporary name first. `metadata` has `metadata_count` pairs of
 * strings (key, value); NULL with 0. An existing file is replaced only once the new one is complete.
 */
STQ_API stq_status stq_safetensors_write(const char *path, const stq_array *arrays, size_t array_count,
                                         const char *const (*metadata)[2], size_t metadata_count);

#ifdef __cplusplus
}
#endif

#endif
