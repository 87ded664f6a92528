/* Every call into the system on the way to a checkpoint fails in turn: the last good checkpoint stays, the saver goes
 * on, and nothing is left behind. The calls are replaced by the functions below. */
#include "checkpoint_testing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

/* What happens to the calls while armed. */
typedef enum fault { NONE, FAIL, SHORT, SLOW } fault;

static atomic_int mode;      /* fault */
static atomic_int countdown; /* the call that fails; counts down to 0 */
static atomic_int failure;   /* errno */
static atomic_int calls;     /* reads and writes while armed with SHORT */
static atomic_int hit;       /* the fault has happened */

static atomic_int direct_reads; /* past the page cache */
static atomic_bool is_cached;   /* what the system says of every page */

static bool fails(void) {
    if (atomic_load(&mode) != FAIL || atomic_fetch_sub(&countdown, 1) != 1)
        return false;
    atomic_store(&hit, 1);
    errno = atomic_load(&failure);
    return true;
}

/* With SHORT, every other read or write is interrupted, and those between do half of what they were asked for. */
static bool interrupted(size_t *bytes) {
    if (atomic_load(&mode) != SHORT)
        return false;
    if (atomic_fetch_add(&calls, 1) % 2 == 0) {
        errno = EINTR;
        return true;
    }
    *bytes = *bytes > 1 ? *bytes / 2 : *bytes;
    return false;
}

ssize_t write(int file, const void *data, size_t bytes) {
    if (fails() || interrupted(&bytes))
        return -1;
    return syscall(SYS_write, file, data, bytes);
}

ssize_t pread(int file, void *data, size_t bytes, off_t offset) {
    if (fcntl(file, F_GETFL) & O_DIRECT)
        atomic_fetch_add(&direct_reads, 1);
    if (fails() || interrupted(&bytes))
        return -1;
    return syscall(SYS_pread64, file, data, bytes, offset);
}

int mincore(void *address, size_t bytes, unsigned char *pages) {
    (void)address, (void)bytes;
    *pages = atomic_load(&is_cached);
    return 0;
}

int fsync(int file) {
    const struct timespec pause = {.tv_nsec = 250000000};
    if (atomic_load(&mode) == SLOW)
        nanosleep(&pause, NULL);
    return fails() ? -1 : (int)syscall(SYS_fsync, file);
}

int openat(int folder, const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    int permissions = va_arg(arguments, int);
    va_end(arguments);
    return fails() ? -1 : (int)syscall(SYS_openat, folder, path, flags, permissions);
}

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    int permissions = va_arg(arguments, int);
    va_end(arguments);
    return fails() ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, permissions);
}

/* Only what was written can be lost by a close that fails; the descriptor is gone in any case. */
int close(int file) {
    int flags = fcntl(file, F_GETFL);
    bool written = flags >= 0 && (flags & O_ACCMODE) != O_RDONLY;
    int result = (int)syscall(SYS_close, file);
    return written && fails() ? -1 : result;
}

int fstat(int file, struct stat *status) {
    return fails() ? -1 : (int)syscall(SYS_newfstatat, file, "", status, AT_EMPTY_PATH);
}

int mkdirat(int folder, const char *path, mode_t permissions) {
    return fails() ? -1 : (int)syscall(SYS_mkdirat, folder, path, permissions);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    return fails() ? -1 : (int)syscall(SYS_renameat2, from_folder, from, to_folder, to, 0);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    return fails() ? -1 : (int)syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
}

int fallocate(int file, int flags, off_t offset, off_t bytes) {
    return fails() ? -1 : (int)syscall(SYS_fallocate, file, flags, offset, bytes);
}

static void arm(fault what, int call, int error) {
    atomic_store(&countdown, call);
    atomic_store(&failure, error);
    atomic_store(&calls, 0);
    atomic_store(&hit, 0);
    atomic_store(&mode, what);
}

static void disarm(void) { atomic_store(&mode, NONE); }

static uint64_t newest_digest(const char *folder) {
    stq_checkpoint *checkpoint;
    uint64_t digest;
    assert_ok(stq_checkpoint_open(&checkpoint, folder));
    assert_ok(stq_checkpoint_verify(checkpoint));
    assert_ok(stq_checkpoint_digest(checkpoint, &digest));
    stq_checkpoint_close(checkpoint);
    return digest;
}

/* One save with the call `call` failing; false when no call was left to fail. */
static bool save_with_fault(model *m, int call, int error, int64_t again) {
    char folder[64];
    make_folder(folder);
    stq_saver *saver = open_saver(folder, 0);
    assert_ok(model_save(m, saver, 1));
    assert_ok(stq_saver_wait(saver, NULL));
    uint64_t good = newest_digest(folder);
    float kept = m->parameters[1][7];
    m->parameters[1][7] = (float)call;
    arm(FAIL, call, error);
    assert_ok(model_save(m, saver, again));
    stq_status status = stq_saver_wait(saver, NULL);
    disarm();
    bool happened = atomic_load(&hit);
    uint64_t digest = newest_digest(folder);
    if (status == STQ_OK) {
        assert_true(digest != good); /* the call was not needed, or none failed */
    } else {
        assert_int_equal(status, STQ_IO_ERROR);
        assert_non_null(strstr(stq_last_error(), strerror(error)));
    }
    assert_ok(model_save(m, saver, 3));
    assert_ok(stq_saver_wait(saver, NULL));
    assert_true(newest_digest(folder) != good);
    /* Step 1, step 3, and `again` if it was published: nothing half-written. */
    assert_in_range(count_names(folder), 2, 3);
    m->parameters[1][7] = kept;
    stq_saver_close(saver);
    remove_folder(folder);
    return happened;
}

static void test_every_call_fails(void **state) {
    (void)state;
    const int errors[] = {ENOSPC, EIO, EFBIG};
    stq_adamw_config config = model_config(MODE_ZONES, 5.0);
    model m;
    model_open(&m, &config);
    model_run(&m, 0, 2);
    for (int again = 2; again >= 1; again--) /* a new step; the same step, which is exchanged */
        for (int e = 0; e < (again == 2 ? 3 : 1); e++) {
            int call = 1;
            while (save_with_fault(&m, call, errors[e], again))
                call++;
            /* Parts, index, folders: a dozen calls at the least. */
            assert_true(call > 12);
        }
    model_close(&m);
}

/* A saver whose saves all fail is alive, and recovers. */
static void test_disk_stays_full(void **state) {
    (void)state;
    stq_adamw_config config = model_config(MODE_FIXED, 5.0);
    char folder[64];
    make_folder(folder);
    model m;
    model_open(&m, &config);
    model_run(&m, 0, 2);
    stq_saver *saver = open_saver(folder, 1);
    assert_ok(model_save(&m, saver, 1));
    assert_ok(stq_saver_wait(saver, NULL));
    uint64_t good = newest_digest(folder);
    for (int step = 2; step < 8; step++) {
        atomic_store(&countdown, 0);
        model_run(&m, step, step + 1);
        arm(FAIL, 3, ENOSPC);
        assert_ok(model_save(&m, saver, step));
        stq_save_result result;
        assert_refused(stq_saver_wait(saver, &result), STQ_IO_ERROR);
        disarm();
        assert_false(result.published);
        assert_int_equal(newest_digest(folder), good);
        assert_int_equal(count_names(folder), 1);
    }
    assert_ok(model_save(&m, saver, 9));
    assert_ok(stq_saver_wait(saver, NULL));
    assert_int_equal(count_names(folder), 1);
    assert_true(newest_digest(folder) != good);
    stq_saver_close(saver);
    model_close(&m);
    remove_folder(folder);
}

/* A model after five steps, and another to load its checkpoint into. */
static void begin_pair(char folder[64], model *m, model *loaded) {
    stq_adamw_config config = model_config(MODE_ZONES, 5.0);
    make_folder(folder);
    model_open(m, &config);
    model_open(loaded, &config);
    model_run(m, 0, 5);
}

static void end_pair(const char *folder, model *m, model *loaded) {
    model_close(m);
    model_close(loaded);
    remove_folder(folder);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The caller waits for the copy, not for the disk; what it changes meanwhile is not saved. */
static void test_slow_disk(void **state) {
    (void)state;
    char folder[64];
    model m, loaded;
    begin_pair(folder, &m, &loaded);
    uint64_t before = model_digest(&m);
    stq_saver *saver = open_saver(folder, 0);
    stq_save_result result;
    arm(SLOW, 0, 0);
    double begin = seconds();
    assert_ok(model_save(&m, saver, 5));
    double stalled = seconds() - begin;
    assert_true(stq_saver_busy(saver));
    model_run(&m, 5, 6);
    assert_ok(stq_saver_wait(saver, &result));
    disarm();
    /* Part, its folder, index, its folder, and the run's folder: five times a quarter of a second. */
    assert_true(result.write_seconds >= 1.25);
    assert_true(result.copy_seconds <= stalled);
    if (stalled > 0.5 * result.write_seconds)
        fail_msg("the caller stood for %.3f s, the writing took %.3f s", stalled, result.write_seconds);
    assert_false(stq_saver_busy(saver));
    assert_ok(model_load(&loaded, folder, NULL));
    assert_int_equal(model_digest(&loaded), before);
    assert_true(model_digest(&m) != before);
    stq_saver_close(saver);
    end_pair(folder, &m, &loaded);
}

/* A file large enough to go past the page cache, where the file system can: pages, and a tail that is none. */
static void test_large_file(void **state) {
    (void)state;
    enum { LARGE = (5 << 20) / 4 + 37 };
    const char *const places[] = {"/dev/shm", "/tmp", "."};
    float *values = malloc(LARGE * sizeof *values), *found = malloc(LARGE * sizeof *found);
    int64_t shape[] = {LARGE};
    for (uint32_t i = 0; i < LARGE; i++)
        values[i] = test_gaussian(1, i);
    for (int place = 0; place < 3; place++) {
        char *folder = text_of("%s/stquant-large-XXXXXX", places[place]);
        if (mkdtemp(folder) != NULL) {
            stq_checkpoint *checkpoint;
            stq_array array = stq_array_whole("large", STQ_FLOAT32, 1, shape, values);
            stq_saver *saver = open_saver(folder, 1);
            stq_save save = {.size = sizeof save, .arrays = &array, .array_count = 1};
            /* As it is, with a disk that refuses what its file system promised (one of the first calls), and in bits.
             */
            for (int turn = 0; turn < 10; turn++) {
                save.step = turn;
                arm(turn == 0 ? NONE : turn < 9 ? FAIL : SHORT, turn, EINVAL);
                assert_ok(stq_saver_save(saver, &save));
                stq_status status = stq_saver_wait(saver, NULL);
                disarm();
                if (turn == 0 || turn == 9)
                    assert_ok(status);
                else if (status != STQ_OK)
                    assert_int_equal(status, STQ_IO_ERROR);
            }
            assert_ok(stq_checkpoint_open(&checkpoint, folder));
            array.data = found;
            memset(found, 0, LARGE * sizeof *found);
            assert_ok(stq_checkpoint_load_arrays(checkpoint, &array, 1));
            assert_memory_equal(values, found, LARGE * sizeof *found);
            stq_checkpoint_entry entry;
            assert_ok(stq_checkpoint_entry_info(checkpoint, 0, &entry));
            assert_int_equal(entry.offset % 4096, 0);
            stq_checkpoint_close(checkpoint);
            stq_saver_close(saver);
            remove_folder(folder);
        }
        free(folder);
    }
    free(values);
    free(found);
}

/* Arrays of several pieces, of one and of less, at offsets that are no pages; halves are read as floats. */
enum { LONG = (9 << 20) / 4 + 37, HALVES = (3 << 20) / 2 + 1, BYTES = (1 << 20) + 7 };

typedef struct large_arrays {
    float *values, *widened;
    uint16_t *halves;
    uint8_t *bytes;
} large_arrays;

static void large_open(large_arrays *a) {
    *a = (large_arrays){calloc(LONG, 4), calloc(HALVES, 4), calloc(HALVES, 2), calloc(BYTES, 1)};
}

static void large_close(large_arrays *a) {
    free(a->values);
    free(a->widened);
    free(a->halves);
    free(a->bytes);
}

static void large_describe(const large_arrays *a, bool widen, stq_array arrays[3]) {
    int64_t counts[] = {LONG, HALVES, BYTES};
    arrays[0] = stq_array_whole("long", STQ_FLOAT32, 1, &counts[0], a->values);
    arrays[1] = widen ? stq_array_whole("halves", STQ_FLOAT32, 1, &counts[1], a->widened)
                      : stq_array_whole("halves", STQ_BFLOAT16, 1, &counts[1], a->halves);
    arrays[2] = stq_array_whole("bytes", STQ_UINT8, 1, &counts[2], a->bytes);
}

static stq_status large_load(const stq_checkpoint *checkpoint, const large_arrays *saved) {
    large_arrays found;
    stq_array arrays[3];
    large_open(&found);
    large_describe(&found, true, arrays);
    stq_status status = stq_checkpoint_load_arrays(checkpoint, arrays, 3);
    if (status == STQ_OK) {
        assert_memory_equal(found.values, saved->values, LONG * sizeof *saved->values);
        assert_memory_equal(found.bytes, saved->bytes, BYTES);
        for (int i = 0; i < HALVES; i++) {
            uint32_t bits = (uint32_t)saved->halves[i] << 16;
            assert_memory_equal(&found.widened[i], &bits, sizeof bits);
        }
    }
    large_close(&found);
    return status;
}

/* A turn for each read that fails or is refused. */
static void large_faults(const stq_checkpoint *checkpoint, const large_arrays *saved) {
    int errors[] = {EIO, EINVAL};
    for (int e = 0; e < 2; e++)
        for (int call = 1, more = 1; more; call++) {
            arm(FAIL, call, errors[e]);
            stq_status status = large_load(checkpoint, saved);
            disarm();
            more = atomic_load(&hit);
            if (more && status != STQ_OK) /* a refused read past the cache is done again through it */
                assert_refused(status, STQ_IO_ERROR);
            assert_true(status == STQ_OK || more);
            assert_true(status != STQ_OK || !more || errors[e] == EINVAL);
        }
}

/* What is not in the page cache is read past it, where the file system can: with faults, damage and a file cut off. */
static void large_folder(const char *place, const large_arrays *saved, bool faults) {
    char *folder = text_of("%s/stquant-large-XXXXXX", place);
    stq_checkpoint *checkpoint;
    stq_array arrays[3];
    if (mkdtemp(folder) == NULL) {
        free(folder);
        return;
    }
    large_describe(saved, false, arrays);
    stq_saver *saver = open_saver(folder, 1);
    stq_save save = {.size = sizeof save, .arrays = arrays, .array_count = 3};
    assert_ok(stq_saver_save(saver, &save));
    stq_saver_close(saver);
    assert_ok(stq_checkpoint_open(&checkpoint, folder));
    for (int cached = 1; cached >= 0; cached--) {
        atomic_store(&is_cached, cached == 1);
        atomic_store(&direct_reads, 0);
        assert_ok(large_load(checkpoint, saved));
        if (cached)
            assert_int_equal(atomic_load(&direct_reads), 0);
        else
            print_message("%s: %d reads past the page cache\n", place, atomic_load(&direct_reads));
        arm(SHORT, 0, 0);
        assert_ok(large_load(checkpoint, saved));
        disarm();
        if (faults)
            large_faults(checkpoint, saved);
    }
    char *path = text_of("%s/step-00000000/model-00001-of-00001.safetensors", folder);
    size_t size;
    uint8_t *bytes = read_bytes(path, &size);
    bytes[size - BYTES - 2 * HALVES - 5] ^= 1; /* near the end of the long array */
    write_bytes(path, bytes, size);
    assert_refused(large_load(checkpoint, saved), STQ_CORRUPT);
    assert_non_null(strstr(stq_last_error(), "'long'"));
    bytes[size - BYTES - 2 * HALVES - 5] ^= 1;
    write_bytes(path, bytes, size);
    assert_ok(large_load(checkpoint, saved));
    assert_int_equal(truncate(path, (off_t)(size - 100)), 0);
    assert_refused(large_load(checkpoint, saved), STQ_CORRUPT);
    assert_non_null(strstr(stq_last_error(), "cut off"));
    stq_checkpoint_close(checkpoint);
    remove_folder(folder);
    free(bytes);
    free(path);
    free(folder);
}

static void test_large_reads(void **state) {
    (void)state;
    large_arrays saved;
    large_open(&saved);
    for (uint32_t i = 0; i < LONG; i++)
        saved.values[i] = test_gaussian(2, i);
    for (uint32_t i = 0; i < HALVES; i++)
        saved.halves[i] = (uint16_t)(stq_hash(i) & 0x7f7f);
    for (uint32_t i = 0; i < BYTES; i++)
        saved.bytes[i] = (uint8_t)stq_hash(i);
    large_folder("/dev/shm", &saved, true);
    large_folder(".", &saved, false);
    large_close(&saved);
    atomic_store(&is_cached, true);
}

/* Interrupted and partial reads and writes change nothing. */
static void test_short_calls(void **state) {
    (void)state;
    char folder[64];
    model m, loaded;
    begin_pair(folder, &m, &loaded);
    stq_saver *saver = open_saver(folder, 0);
    arm(SHORT, 0, 0);
    assert_ok(model_save(&m, saver, 5));
    assert_ok(stq_saver_wait(saver, NULL));
    assert_ok(model_load(&loaded, folder, NULL));
    assert_true(atomic_load(&calls) > 100);
    disarm();
    assert_same_model(&m, &loaded);
    stq_saver_close(saver);
    end_pair(folder, &m, &loaded);
}

/* Every read that fails is told, and the next try succeeds. */
static void test_every_read_fails(void **state) {
    (void)state;
    char folder[64];
    model m, loaded;
    begin_pair(folder, &m, &loaded);
    stq_saver *saver = open_saver(folder, 0);
    assert_ok(model_save(&m, saver, 5));
    stq_saver_close(saver);
    char *path = text_of("%s/step-00000005", folder);
    int call = 1;
    for (bool more = true; more; call++) {
        arm(FAIL, call, EIO);
        stq_status status = model_load(&loaded, path, NULL);
        disarm();
        more = atomic_load(&hit);
        if (more)
            assert_refused(status, STQ_IO_ERROR);
        else
            assert_ok(status);
    }
    assert_true(call > 10);
    assert_same_model(&m, &loaded);
    free(path);
    end_pair(folder, &m, &loaded);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_call_fails), cmocka_unit_test(test_disk_stays_full),
        cmocka_unit_test(test_slow_disk),        cmocka_unit_test(test_large_file),
        cmocka_unit_test(test_short_calls),      cmocka_unit_test(test_every_read_fails),
        cmocka_unit_test(test_large_reads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
