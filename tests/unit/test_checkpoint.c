/* Saving, publishing, opening and loading: every mode, other caps, other ranks, other origins. */
#include "checkpoint_testing.h"

#include <sys/file.h>

enum { STEPS = 37, MORE = 16 };

static const int kinds[] = {MODE_FLOAT32, MODE_FIXED, MODE_ZONES, MODE_RATE_DISTORTION, MODE_SHARED};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* load(save(run(n))) then run(k) == run(n + k), in every mode and from every step of the beginning. */
static void test_resume_is_exact(void **state) {
    (void)state;
    const int steps[] = {0, 1, 9, 13, STEPS};
    for (size_t kind = 0; kind < KINDS; kind++)
        for (size_t s = 0; s < sizeof steps / sizeof *steps; s++) {
            stq_adamw_config config = model_config(kinds[kind], kinds[kind] == MODE_SHARED ? 3.5 : 5.0);
            char folder[64];
            make_folder(folder);
            model whole, resumed;
            model_open(&whole, &config);
            model_run(&whole, 0, steps[s]);
            stq_saver *saver = open_saver(folder, 0);
            assert_ok(model_save(&whole, saver, steps[s]));
            model_run(&whole, steps[s], steps[s] + MORE); /* while it is being written */
            stq_save_result result;
            assert_ok(stq_saver_wait(saver, &result));
            assert_true(result.published);
            assert_int_equal(result.step, steps[s]);
            stq_saver_close(saver);
            config.seed = 1;
            config.threads = s == 3 ? 3 : 1; /* the bytes do not depend on it */
            model_open(&resumed, &config);
            memset(resumed.parameters[0], 0, 64);
            bool changed;
            assert_ok(model_load(&resumed, folder, &changed));
            assert_false(changed);
            model_run(&resumed, steps[s], steps[s] + MORE);
            assert_same_model(&whole, &resumed);
            stq_memory a, b;
            stq_adamw_memory(whole.optimizer, &a);
            stq_adamw_memory(resumed.optimizer, &b);
            assert_int_equal(a.peak_bytes, b.peak_bytes);
            assert_true(a.all_in_bits == b.all_in_bits);
            model_close(&whole);
            model_close(&resumed);
            remove_folder(folder);
        }
}

static int shared_count(const model *m) {
    int count = 0;
    for (size_t i = 0; i < MODEL_TENSORS; i++) {
        stq_tensor_info info;
        assert_ok(stq_adamw_tensor(m->optimizer, i, &info));
        count += info.v_bits == STQ_BITS_SHARED_ROW || info.v_bits == STQ_BITS_SHARED_COL;
    }
    return count;
}

/* A checkpoint of every mode resumes in every other one, under its cap, near the values that were saved. */
static void test_resume_in_another_mode(void **state) {
    (void)state;
    for (size_t from = 0; from < KINDS; from++)
        for (size_t to = 0; to < KINDS; to++) {
            bool shared = kinds[from] == MODE_SHARED;
            stq_adamw_config first = model_config(kinds[from], shared ? 3.5 : 6.5),
                             second = model_config(kinds[to], 5.0);
            char folder[64];
            make_folder(folder);
            model saved, resumed;
            model_open(&saved, &first);
            model_run(&saved, 0, STEPS);
            assert_int_equal(shared_count(&saved) > 0, shared);
            stq_saver *saver = open_saver(folder, 0);
            assert_ok(model_save(&saved, saver, STEPS));
            stq_saver_close(saver);
            model_open(&resumed, &second);
            bool changed;
            assert_ok(model_load(&resumed, folder, &changed));
            assert_int_equal(stq_adamw_step_count(resumed.optimizer), STEPS);
            if (kinds[to] == MODE_FLOAT32)
                for (int i = 0; i < MODEL_TENSORS; i++)
                    for (int which = 0; which < 2; which++) {
                        int64_t count = saved.tensors[i].count;
                        float *x = malloc((size_t)count * 4), *y = malloc((size_t)count * 4);
                        assert_ok(stq_adamw_read_state(saved.optimizer, (size_t)i, (stq_state)which, x, 0, count));
                        assert_ok(stq_adamw_read_state(resumed.optimizer, (size_t)i, (stq_state)which, y, 0, count));
                        assert_memory_equal(x, y, (size_t)count * 4);
                        free(x);
                        free(y);
                    }
            model_run(&resumed, STEPS, STEPS + MORE);
            stq_memory memory;
            stq_adamw_memory(resumed.optimizer, &memory);
            assert_true(memory.cap_bytes == 0 || memory.peak_bytes <= memory.cap_bytes);
            model_close(&saved);
            model_close(&resumed);
            remove_folder(folder);
        }
}

/* ---- Ranks ---- */

/* Rank r of n holds these elements of a tensor: cut at blocks, unevenly. */
static void slice(const stq_tensor *whole, int rank, int ranks, stq_tensor *part) {
    int64_t blocks = stq_block_count(whole->count);
    int64_t first = blocks * rank * rank / ((int64_t)ranks * ranks) * STQ_BLOCK;
    int64_t end = blocks * (rank + 1) * (rank + 1) / ((int64_t)ranks * ranks) * STQ_BLOCK;
    *part = *whole;
    part->first = first < whole->count ? first : whole->count;
    part->count = (end < whole->count ? end : whole->count) - part->first;
}

static void slice_model(const model *whole, int rank, int ranks, stq_tensor parts[MODEL_TENSORS]) {
    for (int i = 0; i < MODEL_TENSORS; i++)
        slice(&whole->tensors[i], rank, ranks, &parts[i]);
}

/* Saves one rank's part: the states are slices, parameters are slices on odd ranks' arrays, whole on one rank else. */
static void save_rank(const model *whole, const char *from, const char *to, int rank, int ranks, uint64_t run,
                      bool *published) {
    stq_adamw_config config = model_config(STQ_POLICY_ZONES, 5.0);
    stq_tensor parts[MODEL_TENSORS];
    stq_adamw *optimizer;
    slice_model(whole, rank, ranks, parts);
    assert_ok(stq_adamw_create(&optimizer, &config, parts, MODEL_TENSORS));
    stq_checkpoint *checkpoint;
    assert_ok(stq_checkpoint_open(&checkpoint, from));
    bool changed;
    assert_ok(stq_checkpoint_load_optimizer(checkpoint, optimizer, &changed));
    assert_false(changed);
    stq_checkpoint_close(checkpoint);
    stq_array arrays[MODEL_TENSORS], mine[MODEL_TENSORS];
    model_arrays(whole, arrays);
    size_t count = 0;
    for (int i = 0; i < MODEL_TENSORS; i++) {
        if (i % 2 == 0 && rank != i % ranks)
            continue; /* whole, on one rank */
        mine[count] = arrays[i];
        if (i % 2 == 1) {
            mine[count].first = parts[i].first;
            mine[count].count = parts[i].count;
            mine[count].data = (float *)arrays[i].data + parts[i].first;
        }
        if (mine[count].count > 0)
            count++;
    }
    stq_saver *saver;
    stq_saver_config saver_config = {
        .size = sizeof saver_config, .folder = to, .rank = (uint32_t)rank, .ranks = (uint32_t)ranks, .run = run};
    assert_ok(stq_saver_open(&saver, &saver_config));
    stq_save save = {.size = sizeof save, .step = STEPS, .optimizer = optimizer, .arrays = mine, .array_count = count};
    assert_ok(stq_saver_save(saver, &save));
    stq_save_result result;
    assert_ok(stq_saver_wait(saver, &result));
    *published = result.published;
    stq_saver_close(saver);
    stq_adamw_destroy(optimizer);
}

static uint64_t file_digest(const char *path) {
    stq_checkpoint *checkpoint;
    uint64_t digest;
    assert_ok(stq_checkpoint_open(&checkpoint, path));
    assert_ok(stq_checkpoint_verify(checkpoint));
    assert_ok(stq_checkpoint_digest(checkpoint, &digest));
    stq_checkpoint_close(checkpoint);
    return digest;
}

/* 1 -> 3 -> 4 -> 2 -> 1 ranks: visible when the last part is there and not before, the same digest, and the same run.
 */
static void test_ranks(void **state) {
    (void)state;
    const int counts[] = {3, 4, 2, 1};
    stq_adamw_config config = model_config(STQ_POLICY_ZONES, 5.0);
    char folders[5][64];
    model whole, resumed;
    for (int i = 0; i < 5; i++)
        make_folder(folders[i]);
    model_open(&whole, &config);
    model_run(&whole, 0, STEPS);
    stq_saver *saver = open_saver(folders[0], 0);
    assert_ok(model_save(&whole, saver, STEPS));
    stq_saver_close(saver);
    uint64_t digest = file_digest(folders[0]);
    for (int i = 0; i < 4; i++) {
        int ranks = counts[i];
        for (int k = 0; k < ranks; k++) {
            bool published;
            char path[128];
            save_rank(&whole, folders[i], folders[i + 1], (k + 1) % ranks, ranks, 77 + (uint64_t)i, &published);
            assert_int_equal(published, k == ranks - 1);
            assert_int_equal(stq_checkpoint_find(folders[i + 1], INT64_MAX, path, sizeof path) == STQ_OK, published);
            if (k == 0 && ranks > 1) {
                stq_checkpoint *checkpoint;
                assert_refused(stq_checkpoint_open(&checkpoint, folders[i + 1]), STQ_IO_ERROR);
            }
        }
        assert_int_equal(file_digest(folders[i + 1]), digest);
    }
    model_open(&resumed, &config);
    assert_ok(model_load(&resumed, folders[2], NULL));
    model_run(&whole, STEPS, STEPS + MORE);
    model_run(&resumed, STEPS, STEPS + MORE);
    assert_same_model(&whole, &resumed);
    model_close(&whole);
    model_close(&resumed);
    for (int i = 0; i < 5; i++)
        remove_folder(folders[i]);
}

/* Opens a model, trains it for `steps` and saves it as the checkpoint of step STEPS in `folder`. */
static void open_saved(model *m, int steps, const char *folder) {
    stq_adamw_config config = model_config(STQ_POLICY_ZONES, 5.0);
    model_open(m, &config);
    model_run(m, 0, steps);
    stq_saver *saver = open_saver(folder, 0);
    assert_ok(model_save(m, saver, STEPS));
    stq_saver_close(saver);
}

/* A rank that dies between its part and the publication: anyone may publish. */
static void test_publish_later(void **state) {
    (void)state;
    char from[64], to[64];
    model whole;
    make_folder(from);
    make_folder(to);
    open_saved(&whole, 3, from);
    bool published;
    save_rank(&whole, from, to, 0, 2, 5, &published);
    assert_false(published);
    assert_ok(stq_checkpoint_publish(to, STEPS, 2, 5, &published));
    assert_false(published);
    char *partial = text_of("%s/.step-%08d.%016x.partial", to, STEPS, 5);
    char *hidden = text_of("%s/hidden", partial), *part = text_of("%s/model-00001-of-00002.safetensors", partial);
    assert_int_equal(rename(part, hidden), 0);
    save_rank(&whole, from, to, 1, 2, 5, &published);
    assert_false(published);
    assert_int_equal(rename(hidden, part), 0);
    assert_ok(stq_checkpoint_publish(to, STEPS, 2, 5, &published));
    assert_true(published);
    assert_ok(stq_checkpoint_publish(to, STEPS, 2, 5, &published));
    assert_true(published);
    assert_int_equal(file_digest(to), file_digest(from));
    free(partial);
    free(hidden);
    free(part);
    model_close(&whole);
    remove_folder(from);
    remove_folder(to);
}

/* Ranks that are threads of this process, or processes of the same number on other hosts, finish at the same moment. */
static void test_publish_at_once(void **state) {
    (void)state;
    enum { PUBLISHERS = 4, TIMES = 100 };
    char from[64], to[64];
    model whole;
    make_folder(from);
    make_folder(to);
    open_saved(&whole, 1, from);
    char *published_folder = text_of("%s/step-%08d", to, STEPS);
    for (int i = 0; i < TIMES; i++) {
        bool published;
        int wrong = 0;
        uint64_t run = 1000 + (uint64_t)i;
        save_rank(&whole, from, to, 0, 2, run, &published);
        char *partial = text_of("%s/.step-%08d.%016x.partial", to, STEPS, (unsigned)run);
        char *part = text_of("%s/model-00001-of-00002.safetensors", partial), *aside = text_of("%s/aside", to);
        assert_int_equal(rename(part, aside), 0);
        save_rank(&whole, from, to, 1, 2, run, &published);
        assert_false(published);
        assert_int_equal(rename(aside, part), 0);
#pragma omp parallel num_threads(PUBLISHERS) reduction(+ : wrong)
        {
            bool seen;
            wrong += stq_checkpoint_publish(to, STEPS, 2, run, &seen) != STQ_OK || !seen;
        }
        assert_int_equal(wrong, 0);
        assert_int_equal(count_names(published_folder), 3); /* two parts and the index */
        assert_int_equal(access(partial, F_OK), -1);
        assert_int_equal(file_digest(to), file_digest(from));
        free(partial);
        free(part);
        free(aside);
    }
    free(published_folder);
    model_close(&whole);
    remove_folder(from);
    remove_folder(to);
}

/* Several write one file: the last one counts, whole. */
static void test_files_at_once(void **state) {
    (void)state;
    enum { WRITERS = 4, COUNT = 20000 };
    char folder[64];
    int wrong = 0;
    make_folder(folder);
    char *path = text_of("%s/x.safetensors", folder);
#pragma omp parallel num_threads(WRITERS) reduction(+ : wrong)
    {
        static const int64_t shape[] = {COUNT};
        float *values = calloc(COUNT, sizeof *values);
        const stq_array array = stq_array_whole("x", STQ_FLOAT32, 1, shape, values);
        for (int i = 0; i < 30; i++)
            wrong += stq_safetensors_write(path, &array, 1, NULL, 0) != STQ_OK;
        free(values);
    }
    assert_int_equal(wrong, 0);
    assert_int_equal(count_names(folder), 1);
    stq_checkpoint *checkpoint;
    assert_ok(stq_checkpoint_open(&checkpoint, path));
    stq_checkpoint_close(checkpoint);
    free(path);
    remove_folder(folder);
}

/* ---- The folder of a run ---- */

/* --keep, leftovers of interrupted runs, the lock, a step that is saved again. */
static void test_folder(void **state) {
    (void)state;
    stq_adamw_config config = model_config(STQ_POLICY_FIXED, 5.0);
    char folder[64], path[160];
    make_folder(folder);
    char *inside = text_of("%s/a/b", folder), *leftover = text_of("%s/.step-00000009.0123456789abcdef.partial", inside);
    char *other = text_of("%s/.step-notes", inside), *unfinished = text_of("%s/step-00000099", inside);
    model m;
    model_open(&m, &config);
    stq_saver *saver = open_saver(inside, 2), *second;
    stq_saver_config again = {.size = sizeof again, .folder = inside};
    assert_refused(stq_saver_open(&second, &again), STQ_IO_ERROR);
    assert_null(second);
    stq_saver_close(saver);
    assert_int_equal(mkdir(leftover, 0777), 0);
    assert_int_equal(mkdir(other, 0777), 0);
    assert_int_equal(mkdir(unfinished, 0777), 0); /* no index: not a checkpoint */
    saver = open_saver(inside, 2);
    assert_int_equal(access(leftover, F_OK), -1);
    assert_int_equal(access(other, F_OK), 0);
    rmdir(other);
    for (int step = 1; step <= 5; step++) {
        model_run(&m, step - 1, step);
        assert_ok(model_save(&m, saver, step));
    }
    assert_ok(stq_saver_wait(saver, NULL));
    assert_int_equal(count_names(inside), 3); /* 4, 5, and the folder of somebody else */
    assert_ok(stq_checkpoint_find(inside, INT64_MAX, path, sizeof path));
    assert_string_equal(strrchr(path, '/'), "/step-00000005");
    assert_ok(stq_checkpoint_find(inside, 5, path, sizeof path));
    assert_string_equal(strrchr(path, '/'), "/step-00000004");
    assert_refused(stq_checkpoint_find(inside, 4, path, sizeof path), STQ_IO_ERROR);
    uint64_t before = file_digest(inside);
    model_run(&m, 5, 6);
    assert_ok(model_save(&m, saver, 5));
    assert_ok(stq_saver_wait(saver, NULL));
    assert_true(file_digest(inside) != before);
    assert_int_equal(count_names(inside), 3);
    stq_saver_close(saver);
    model_close(&m);
    free(inside);
    free(leftover);
    free(other);
    free(unfinished);
    remove_folder(folder);
}

/* The newest that is whole is found where newer ones are broken. */
static void test_newest_whole(void **state) {
    (void)state;
    stq_adamw_config config = model_config(STQ_POLICY_FIXED, 5.0);
    char folder[64], path[160];
    make_folder(folder);
    model m;
    model_open(&m, &config);
    model_run(&m, 0, 1);
    stq_saver *saver = open_saver(folder, 0);
    for (int step = 1; step <= 4; step++)
        assert_ok(model_save(&m, saver, step));
    stq_saver_close(saver);
    char *cut = text_of("%s/step-00000004/model-00001-of-00001.safetensors", folder);
    char *gone = text_of("%s/step-00000003/model-00001-of-00001.safetensors", folder);
    assert_int_equal(truncate(cut, 1000), 0);
    assert_int_equal(unlink(gone), 0);
    assert_ok(stq_checkpoint_find(folder, INT64_MAX, path, sizeof path));
    assert_string_equal(strrchr(path, '/'), "/step-00000002");
    free(cut);
    free(gone);
    model_close(&m);
    remove_folder(folder);
}

/* ---- Arrays ---- */

/* Every type, scalars, empty arrays, parts; 16-bit floats widened. */
static void test_arrays(void **state) {
    (void)state;
    char folder[64];
    make_folder(folder);
    char *path = text_of("%s/arrays.safetensors", folder);
    float scalar = 3.5f, matrix[6] = {1, -2, 3, -4, 5, 1e30f};
    uint16_t bfloat[3] = {0x3f80, 0xc000, 0x7f7f}, half[2] = {0x3c00, 0x0001};
    int64_t m_shape[] = {2, 3}, b_shape[] = {3}, h_shape[] = {1, 2, 1}, e_shape[] = {0, 5};
    stq_array arrays[] = {stq_array_whole("half", STQ_FLOAT16, 3, h_shape, half),
                          stq_array_whole("scalar", STQ_FLOAT32, 0, NULL, &scalar),
                          stq_array_whole("bfloat", STQ_BFLOAT16, 1, b_shape, bfloat),
                          stq_array_whole("a/b\\\"c", STQ_FLOAT32, 2, m_shape, matrix),
                          stq_array_whole("empty", STQ_FLOAT32, 2, e_shape, NULL)};
    const char *metadata[][2] = {{"format", "pt"}, {"from", "a test"}};
    assert_ok(stq_safetensors_write(path, arrays, 5, metadata, 2));
    stq_checkpoint *checkpoint;
    assert_ok(stq_checkpoint_open(&checkpoint, path));
    stq_checkpoint_info info;
    assert_ok(stq_checkpoint_describe(checkpoint, &info));
    assert_int_equal(info.array_count, 5);
    assert_int_equal(info.tensor_count, 0);
    assert_int_equal(info.format_version, 0);
    float read_scalar, read_matrix[6], read_bfloat[3], read_half[2], part[4];
    uint16_t raw[3];
    stq_array wanted[] = {stq_array_whole("half", STQ_FLOAT32, 3, h_shape, read_half),
                          stq_array_whole("scalar", STQ_FLOAT32, 0, NULL, &read_scalar),
                          stq_array_whole("bfloat", STQ_FLOAT32, 1, b_shape, read_bfloat),
                          stq_array_whole("a/b\\\"c", STQ_FLOAT32, 2, m_shape, read_matrix)};
    assert_ok(stq_checkpoint_load_arrays(checkpoint, wanted, 4));
    assert_true(read_scalar == scalar && read_half[0] == 1.0f && read_half[1] == 0x1p-24f);
    assert_true(read_bfloat[0] == 1.0f && read_bfloat[1] == -2.0f && read_bfloat[2] == 0x1.fep127f);
    assert_memory_equal(matrix, read_matrix, sizeof matrix);
    stq_array piece = wanted[3];
    piece.first = 1, piece.count = 4, piece.data = part;
    assert_ok(stq_checkpoint_load_arrays(checkpoint, &piece, 1));
    assert_memory_equal(matrix + 1, part, sizeof part);
    stq_array same = stq_array_whole("bfloat", STQ_BFLOAT16, 1, b_shape, raw);
    assert_ok(stq_checkpoint_load_arrays(checkpoint, &same, 1));
    assert_memory_equal(bfloat, raw, sizeof raw);
    same.type = STQ_FLOAT16;
    assert_refused(stq_checkpoint_load_arrays(checkpoint, &same, 1), STQ_INVALID_ARGUMENT);
    wanted[3].shape[0] = 3;
    assert_refused(stq_checkpoint_load_arrays(checkpoint, wanted + 3, 1), STQ_INVALID_ARGUMENT);
    piece.count = 6;
    assert_refused(stq_checkpoint_load_arrays(checkpoint, &piece, 1), STQ_INVALID_ARGUMENT);
    piece.name = "none";
    assert_refused(stq_checkpoint_load_arrays(checkpoint, &piece, 1), STQ_INVALID_ARGUMENT);
    stq_checkpoint_close(checkpoint);
    arrays[1].name = "half";
    assert_refused(stq_safetensors_write(path, arrays, 5, NULL, 0), STQ_INVALID_ARGUMENT);
    arrays[1].name = "tab\t";
    assert_refused(stq_safetensors_write(path, arrays, 5, NULL, 0), STQ_INVALID_ARGUMENT);
    arrays[1].name = "\xff";
    assert_refused(stq_safetensors_write(path, arrays, 5, NULL, 0), STQ_INVALID_ARGUMENT);
    assert_int_equal(count_names(folder), 1);
    free(path);
    remove_folder(folder);
}

/* Bytes are arrays of checkpoints and nothing else: never read as floats, never a tensor of an optimizer. */
static void test_byte_arrays(void **state) {
    (void)state;
    char folder[64];
    make_folder(folder);
    uint8_t codes[5] = {0, 1, 127, 128, 255}, read[5] = {0};
    float floats[5];
    int64_t shape[] = {5};
    stq_array array = stq_array_whole("codes", STQ_UINT8, 1, shape, codes);
    stq_saver *saver;
    stq_saver_config config = {.size = sizeof config, .folder = folder};
    stq_save save = {.size = sizeof save, .step = 3, .arrays = &array, .array_count = 1};
    assert_ok(stq_saver_open(&saver, &config));
    assert_ok(stq_saver_save(saver, &save));
    assert_ok(stq_saver_wait(saver, NULL));
    stq_saver_close(saver);
    stq_checkpoint *checkpoint;
    assert_ok(stq_checkpoint_open(&checkpoint, folder));
    assert_ok(stq_checkpoint_verify(checkpoint));
    array.data = read;
    assert_ok(stq_checkpoint_load_arrays(checkpoint, &array, 1));
    assert_memory_equal(read, codes, sizeof codes);
    stq_array widened = stq_array_whole("codes", STQ_FLOAT32, 1, shape, floats);
    assert_refused(stq_checkpoint_load_arrays(checkpoint, &widened, 1), STQ_INVALID_ARGUMENT);
    stq_checkpoint_close(checkpoint);
    stq_tensor tensor = stq_tensor_whole("codes", 80, 64);
    tensor.gradient_type = STQ_UINT8;
    stq_adamw_config adamw = stq_adamw_defaults();
    stq_adamw *optimizer;
    assert_refused(stq_adamw_create(&optimizer, &adamw, &tensor, 1), STQ_INVALID_ARGUMENT);
    remove_folder(folder);
}

/* ---- PyTorch's states ---- */

/* The moments of a float32 run, named as PyTorch's, resume the run exactly; under a cap they are encoded. */
static void test_torch_states(void **state) {
    (void)state;
    stq_adamw_config plain = model_config(STQ_POLICY_FLOAT32, 5.0), capped = model_config(STQ_POLICY_ZONES, 5.0);
    plain.error_compensation = 0;
    char folder[64];
    make_folder(folder);
    char *path = text_of("%s/adamw.safetensors", folder);
    model from, to, low;
    model_open(&from, &plain);
    from.late_from = 20;
    model_run(&from, 0, STEPS);
    stq_array arrays[4 * MODEL_TENSORS];
    float *moments[2 * MODEL_TENSORS], steps[MODEL_TENSORS];
    char *names[3 * MODEL_TENSORS];
    model_arrays(&from, arrays);
    for (int i = 0; i < MODEL_TENSORS; i++) {
        for (int which = 0; which < 2; which++) {
            float **values = &moments[2 * i + which];
            *values = malloc((size_t)from.tensors[i].count * sizeof **values);
            assert_ok(
                stq_adamw_read_state(from.optimizer, (size_t)i, (stq_state)which, *values, 0, from.tensors[i].count));
            names[3 * i + which] = text_of("state.%s.%s", from.tensors[i].name, which ? "exp_avg_sq" : "exp_avg");
            stq_array *array = &arrays[MODEL_TENSORS + 3 * i + which];
            *array = arrays[i];
            array->name = names[3 * i + which];
            array->data = *values;
        }
        steps[i] = i == MODEL_TENSORS - 1 ? STEPS - 20 : STEPS;
        names[3 * i + 2] = text_of("state.%s.step", from.tensors[i].name);
        arrays[MODEL_TENSORS + 3 * i + 2] = stq_array_whole(names[3 * i + 2], STQ_FLOAT32, 0, NULL, &steps[i]);
    }
    assert_ok(stq_safetensors_write(path, arrays, 4 * MODEL_TENSORS, NULL, 0));
    model_open(&to, &plain);
    bool changed;
    assert_ok(model_load(&to, path, &changed));
    assert_false(changed);
    assert_same_model(&from, &to);
    model_run(&from, STEPS, STEPS + MORE);
    model_run(&to, STEPS, STEPS + MORE);
    assert_same_model(&from, &to);
    model_open(&low, &capped);
    assert_ok(model_load(&low, path, &changed));
    assert_true(changed);
    model_run(&low, STEPS, STEPS + MORE);
    stq_memory memory;
    stq_adamw_memory(low.optimizer, &memory);
    assert_true(memory.peak_bytes <= memory.cap_bytes);
    steps[1] = -1;
    assert_ok(stq_safetensors_write(path, arrays, 4 * MODEL_TENSORS, NULL, 0));
    assert_refused(model_load(&to, path, &changed), STQ_CORRUPT);
    assert_ok(stq_safetensors_write(path, arrays, 4 * MODEL_TENSORS - 2, NULL, 0));
    assert_refused(model_load(&to, path, &changed), STQ_CORRUPT);
    for (int i = 0; i < 2 * MODEL_TENSORS; i++)
        free(moments[i]);
    for (int i = 0; i < 3 * MODEL_TENSORS; i++)
        free(names[i]);
    free(path);
    model_close(&from);
    model_close(&to);
    model_close(&low);
    remove_folder(folder);
}

/* ---- What a checkpoint tells ---- */

static void test_description(void **state) {
    (void)state;
    stq_adamw_config config = model_config(STQ_POLICY_ZONES, 5.0), plain = model_config(STQ_POLICY_FLOAT32, 5.0);
    char folder[64];
    make_folder(folder);
    model m, full;
    model_open(&m, &config);
    model_open(&full, &plain);
    model_run(&m, 0, STEPS);
    model_run(&full, 0, STEPS);
    stq_saver *saver = open_saver(folder, 0);
    assert_ok(model_save(&m, saver, 100));
    assert_ok(model_save(&full, saver, 101));
    stq_saver_close(saver);
    char *path = text_of("%s/step-00000100", folder);
    stq_checkpoint *checkpoint, *float32;
    stq_checkpoint_info info;
    assert_ok(stq_checkpoint_open(&checkpoint, path));
    assert_ok(stq_checkpoint_open(&float32, folder));
    assert_ok(stq_checkpoint_describe(checkpoint, &info));
    assert_int_equal(info.step, 100);
    assert_int_equal(info.format_version, STQ_FORMAT_VERSION);
    assert_int_equal(info.array_count, MODEL_TENSORS);
    assert_int_equal(info.tensor_count, MODEL_TENSORS);
    assert_non_null(strstr(info.application, "\"position\": 12"));
    uint64_t bytes[2] = {0, 0};
    for (size_t i = 0; i < MODEL_TENSORS; i++) {
        stq_checkpoint_tensor tensor, other;
        assert_ok(stq_checkpoint_tensor_info(checkpoint, i, &tensor));
        assert_ok(stq_checkpoint_tensor_info(float32, i, &other));
        stq_tensor_info now;
        assert_ok(stq_adamw_tensor(m.optimizer, i, &now));
        assert_string_equal(tensor.tensor.name, now.name);
        assert_int_equal(tensor.record.bits[0], now.m_bits);
        assert_int_equal(tensor.bytes[0] + tensor.bytes[1], now.bytes);
        bytes[0] += tensor.bytes[0] + tensor.bytes[1];
        bytes[1] += other.bytes[0] + other.bytes[1];
        for (int which = 0; which < 2; which++) {
            double signal, noise;
            float *values = malloc((size_t)tensor.tensor.count * sizeof *values);
            float *direct = malloc((size_t)tensor.tensor.count * sizeof *values);
            assert_ok(stq_checkpoint_noise(checkpoint, i, (stq_state)which, &signal, &noise));
            assert_ok(stq_checkpoint_read_state(checkpoint, i, (stq_state)which, values));
            assert_ok(stq_adamw_read_state(m.optimizer, i, (stq_state)which, direct, 0, tensor.tensor.count));
            assert_memory_equal(values, direct, (size_t)tensor.tensor.count * sizeof *values);
            double sum = 0;
            for (int64_t k = 0; k < tensor.tensor.count; k++)
                sum += which == 0 ? (double)values[k] * values[k] : (double)values[k];
            assert_true(fabs(signal - sum) <= 1e-9 * sum);
            uint32_t bits = tensor.record.bits[which];
            assert_true(bits == 32 ? noise == 0 : noise > 0 && noise < 2 * sum);
            /* docs/codec.md's compander: 8.7, 14.3, 20.1, 26.1, 32.1 dB at 2 to 6 bits for Gaussian moments, 6 dB a
             * bit. */
            if (which == 0 && bits >= 3 && bits <= 8)
                assert_true(fabs(10 * log10(signal / noise) - (14.3 + 6.0 * (bits - 3))) < 2.5);
            free(values);
            free(direct);
        }
    }
    /* The states of this small model have large shares of float32 vectors; the cap of 5 of 32 bits holds for all. */
    assert_true((double)bytes[0] <= 0.16 * (double)bytes[1]);
    stq_checkpoint_entry entry;
    for (size_t i = 0; i < info.entry_count; i++) {
        assert_ok(stq_checkpoint_entry_info(checkpoint, i, &entry));
        assert_true(entry.has_checksum);
        assert_int_equal(entry.offset % (entry.type[0] == 'F' ? 4 : 1), 0);
    }
    assert_refused(stq_checkpoint_entry_info(checkpoint, info.entry_count, &entry), STQ_INVALID_ARGUMENT);
    stq_checkpoint_close(checkpoint);
    stq_checkpoint_close(float32);
    free(path);
    model_close(&m);
    model_close(&full);
    remove_folder(folder);
}

/* Saves and loads that contradict the model are refused before anything changes. */
static void test_refusals(void **state) {
    (void)state;
    stq_adamw_config config = model_config(STQ_POLICY_FIXED, 5.0);
    char folder[64];
    make_folder(folder);
    model m;
    model_open(&m, &config);
    model_run(&m, 0, 2);
    stq_saver *saver = open_saver(folder, 0);
    stq_array arrays[MODEL_TENSORS];
    model_arrays(&m, arrays);
    stq_save save = {.size = sizeof save, .step = 1, .optimizer = m.optimizer, .arrays = arrays, .array_count = 2};
    arrays[1].name = arrays[0].name;
    assert_refused(stq_saver_save(saver, &save), STQ_INVALID_ARGUMENT);
    arrays[1].name = "__metadata__";
    assert_ok(stq_saver_save(saver, &save));
    assert_refused(stq_saver_wait(saver, NULL), STQ_INVALID_ARGUMENT);
    arrays[1].name = "state.layer.weight.m.base"; /* what a state is called */
    assert_refused(stq_saver_save(saver, &save), STQ_INVALID_ARGUMENT);
    arrays[1].name = "fine";
    arrays[1].count++;
    assert_refused(stq_saver_save(saver, &save), STQ_INVALID_ARGUMENT);
    arrays[1].count--;
    save.application = "[1, 2]";
    assert_refused(stq_saver_save(saver, &save), STQ_INVALID_ARGUMENT);
    save.application = "{";
    assert_refused(stq_saver_save(saver, &save), STQ_INVALID_ARGUMENT);
    save.application = NULL;
    save.step = -1;
    assert_refused(stq_saver_save(saver, &save), STQ_INVALID_ARGUMENT);
    assert_int_equal(count_names(folder), 0);
    save.step = 3;
    assert_ok(stq_saver_save(saver, &save));
    stq_saver_close(saver);
    stq_checkpoint *checkpoint;
    assert_ok(stq_checkpoint_open(&checkpoint, folder));
    uint64_t before = model_digest(&m);
    stq_adamw *fewer;
    assert_ok(stq_adamw_create(&fewer, &config, m.tensors, MODEL_TENSORS - 1));
    assert_refused(stq_checkpoint_load_optimizer(checkpoint, fewer, NULL), STQ_INVALID_ARGUMENT);
    stq_adamw_destroy(fewer);
    stq_tensor other[MODEL_TENSORS];
    memcpy(other, m.tensors, sizeof other);
    other[1].rows++;
    other[1].count += other[1].cols;
    assert_ok(stq_adamw_create(&fewer, &config, other, MODEL_TENSORS));
    assert_refused(stq_checkpoint_load_optimizer(checkpoint, fewer, NULL), STQ_INVALID_ARGUMENT);
    stq_adamw_destroy(fewer);
    assert_int_equal(model_digest(&m), before);
    stq_checkpoint_close(checkpoint);
    assert_refused(stq_checkpoint_open(&checkpoint, "/nowhere/at/all"), STQ_IO_ERROR);
    assert_refused(stq_checkpoint_open(&checkpoint, "/dev/null"), STQ_IO_ERROR);
    stq_saver_config none = {.size = sizeof none, .folder = "/dev/null/x"};
    assert_refused(stq_saver_open(&saver, &none), STQ_IO_ERROR);
    model_close(&m);
    remove_folder(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume_is_exact), cmocka_unit_test(test_resume_in_another_mode),
        cmocka_unit_test(test_ranks),           cmocka_unit_test(test_publish_later),
        cmocka_unit_test(test_folder),          cmocka_unit_test(test_newest_whole),
        cmocka_unit_test(test_arrays),          cmocka_unit_test(test_byte_arrays),
        cmocka_unit_test(test_torch_states),    cmocka_unit_test(test_description),
        cmocka_unit_test(test_publish_at_once), cmocka_unit_test(test_files_at_once),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
