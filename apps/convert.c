// `stquant convert`: checkpoints with other widths, in more or fewer parts, to and from files of other programs.
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "checkpoint_model.h"
#include "command.h"
#include "packed.h"
#include "train/log.h"
#include "train/save.h"

struct settings {
    const char *words[2], *from, *to, *format;
    double state_bits;      // 0 where not given
    int64_t m_bits, v_bits; // likewise
    int64_t ranks;
};

enum { FORMAT = 0x2000, STATE_BITS, M_BITS, V_BITS, RANKS };

static const struct argp_option options[] = {
    {"to", FORMAT, "checkpoint|float32|torch|gpt2|packed", 0,
     "checkpoint: a run's folder, to --resume from (default); float32: the same with float32 states; torch: one file "
     "with float32 parameters and the states of PyTorch's AdamW; gpt2: a folder of weights as Hugging Face's GPT-2 has "
     "them; packed: the low-bit weights of a run with --qat, to evaluate",
     0},
    {"state-bits", STATE_BITS, "B", 0, "Widths under this cap, in bits per state value with everything included", 0},
    {"m-bits", M_BITS, "N", 0, "Width of the first moments, 2 to 8", 0},
    {"v-bits", V_BITS, "N", 0, "Width of the second moments, 2 to 8", 0},
    {"ranks", RANKS, "N", 0, "Files to write (1)", 0},
    {0}};

static error_t parse(int key, char *argument, struct argp_state *state) {
    static const char *const formats[] = {"checkpoint", "float32", "torch", "gpt2", "packed"};
    struct settings *settings = state->input;
    switch (key) {
    case FORMAT:
        settings->format = command_choice(state, "to", argument, formats, 5);
        return 0;
    case STATE_BITS:
        settings->state_bits = command_real(state, "state-bits", argument, 0.1, 64);
        return 0;
    case M_BITS:
        settings->m_bits = command_integer(state, "m-bits", argument, 2, 8);
        return 0;
    case V_BITS:
        settings->v_bits = command_integer(state, "v-bits", argument, 2, 8);
        return 0;
    case RANKS:
        settings->ranks = command_integer(state, "ranks", argument, 1, 99999);
        return 0;
    case ARGP_KEY_ARG:
        command_argument(state, argument, settings->words, 2, "give what to read and where to write");
        return 0;
    case ARGP_KEY_END:
        if (state->arg_num < 2) {
            argp_failure(state, APP_USAGE, 0, "Give two paths: what to read and where to write.");
        }
        settings->from = settings->words[0];
        settings->to = settings->words[1];
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = options,
    .parser = parse,
    .args_doc = "FROM TO",
    .doc =
        "Converts a checkpoint.\v"
        "FROM is a run's folder (its newest whole checkpoint is taken), a checkpoint's, or a safetensors file: also "
        "one with the states of PyTorch's AdamW, named as docs/format.md has it. Without --state-bits and --m-bits the "
        "widths stay as they are; with them, matrices of 4,096 elements and more get new ones. Widths that stay are "
        "copied bit by bit.\n\n"
        "Examples:\n\n"
        "  stquant convert run run-at-4 --state-bits 4.0\n"
        "  stquant convert run weights.safetensors --to torch\n"
        "  stquant convert run gpt2 --to gpt2\n"};

// ---- Arrays ----

struct arrays {
    stq_array *list;
    size_t count;
};

static void release_arrays(struct arrays *arrays) {
    for (size_t i = 0; i < arrays->count; i++) {
        free(arrays->list[i].data);
    }
    free(arrays->list);
    *arrays = (struct arrays){0};
}

// All arrays of the checkpoint; as float32 where asked.
static enum app_status read_arrays(const stq_checkpoint *checkpoint, int as_float32, struct arrays *arrays) {
    stq_checkpoint_info info;
    stq_checkpoint_describe(checkpoint, &info);
    arrays->list = calloc(info.array_count + 1, sizeof(*arrays->list));
    if (!arrays->list) {
        return app_fail(APP_FAILED, "There is no memory for %zu arrays.", info.array_count);
    }
    for (size_t i = 0; i < info.array_count; i++) {
        stq_array *array = &arrays->list[i];
        stq_checkpoint_array(checkpoint, i, array);
        array->type = as_float32 && array->type != STQ_UINT8 ? STQ_FLOAT32 : array->type;
        array->data = malloc((size_t)array->count * stq_dtype_size(array->type) + 1);
        arrays->count++;
        if (!array->data) {
            return app_fail(APP_FAILED, "There is no memory for the %lld elements of '%s'.", (long long)array->count,
                            array->name);
        }
    }
    return app_check(stq_checkpoint_load_arrays(checkpoint, arrays->list, arrays->count));
}

// ---- Checkpoints ----

// Everything that stays the same for all parts that are written.
struct conversion {
    const struct settings *settings;
    const stq_checkpoint *checkpoint;
    stq_checkpoint_info info;
    struct arrays arrays;
    stq_tensor *tensors; // whole
    stq_adamw_group *groups;
    stq_adamw_config config;
    int64_t elements; // of all tensors
    int64_t array_elements;
    uint64_t run;
    int published, changed;
};

// Widths are kept by a policy that accepts any, with float32 where they are float32.
static void keep_widths(struct conversion *c, const stq_checkpoint_tensor *saved, stq_tensor *tensor) {
    const uint8_t *bits = saved->record.bits[0] ? saved->record.bits : saved->record.target;
    const int is_float32 = bits[0] == 32;
    c->config.policy.cap_bytes = UINT64_C(1) << 60;
    c->config.policy.shared_v = STQ_SHARED_AUTO;
    c->config.exempt_below = 0;
    tensor->m_bits = is_float32 ? 32 : tensor->m_bits == 32 ? 0 : tensor->m_bits;
    tensor->v_bits = is_float32 ? 32 : tensor->v_bits == 32 ? 0 : tensor->v_bits;
    if (!is_float32 && (tensor->rows == 1 || tensor->cols == 1)) {
        tensor->m_bits = bits[0];
        tensor->v_bits = bits[1];
    }
}

static void choose_policy(struct conversion *c) {
    const struct settings *settings = c->settings;
    stq_policy_config *policy = &c->config.policy;
    if (strcmp(settings->format, "float32") == 0) {
        policy->kind = STQ_POLICY_FLOAT32;
    } else if (settings->m_bits || settings->v_bits) {
        policy->kind = STQ_POLICY_FIXED;
        policy->fixed_m_bits = (uint32_t)settings->m_bits;
        policy->fixed_v_bits = (uint32_t)settings->v_bits;
    } else if (settings->state_bits > 0) {
        policy->state_bits = settings->state_bits;
    }
}

static int keeps_widths(const struct settings *settings) {
    return strcmp(settings->format, "checkpoint") == 0 && settings->state_bits == 0 && settings->m_bits == 0;
}

static enum app_status describe_tensors(struct conversion *c) {
    c->tensors = calloc(c->info.tensor_count + 1, sizeof(*c->tensors));
    c->groups = calloc(c->info.group_count + 1, sizeof(*c->groups));
    if (!c->tensors || !c->groups) {
        return app_fail(APP_FAILED, "There is no memory for %zu tensors.", c->info.tensor_count);
    }
    c->config = stq_adamw_defaults();
    choose_policy(c);
    for (size_t i = 0; i < c->info.group_count; i++) {
        stq_checkpoint_group(c->checkpoint, i, &c->groups[i]);
    }
    c->config.groups = c->info.group_count > 0 ? c->groups : NULL;
    c->config.group_count = c->info.group_count;
    for (size_t i = 0; i < c->info.tensor_count; i++) {
        stq_checkpoint_tensor saved;
        stq_checkpoint_tensor_info(c->checkpoint, i, &saved);
        c->tensors[i] = saved.tensor;
        c->elements += saved.tensor.count;
        if (keeps_widths(c->settings)) {
            keep_widths(c, &saved, &c->tensors[i]);
        } else {
            c->tensors[i].m_bits = c->tensors[i].v_bits = 0;
        }
    }
    for (size_t i = 0; i < c->arrays.count; i++) {
        c->array_elements += c->arrays.list[i].count;
    }
    return APP_OK;
}

// Where rank `rank` begins among `elements` elements.
static int64_t cut(int64_t elements, int64_t rank, int64_t ranks) {
    return rank == ranks ? elements : (int64_t)((double)elements * (double)rank / (double)ranks);
}

// A cut at `place` among all elements, inside a tensor that begins at `before`: at multiples of 65,536 elements of it.
static int64_t cut_tensor(int64_t count, int64_t before, int64_t place) {
    const int64_t segment = 65536;
    if (place <= before) {
        return 0;
    }
    return place >= before + count ? count : (place - before) / segment * segment;
}

static enum app_status make_optimizer(struct conversion *c, int64_t rank, stq_adamw **optimizer) {
    *optimizer = NULL;
    if (c->info.tensor_count == 0) {
        return APP_OK;
    }
    const int64_t ranks = c->settings->ranks;
    stq_tensor *slices = calloc(c->info.tensor_count, sizeof(*slices));
    if (!slices) {
        return app_fail(APP_FAILED, "There is no memory for %zu tensors.", c->info.tensor_count);
    }
    int64_t before = 0;
    for (size_t i = 0; i < c->info.tensor_count; i++) {
        const int64_t count = c->tensors[i].count;
        slices[i] = c->tensors[i];
        slices[i].first = cut_tensor(count, before, cut(c->elements, rank, ranks));
        slices[i].count = cut_tensor(count, before, cut(c->elements, rank + 1, ranks)) - slices[i].first;
        before += count;
    }
    stq_status status = stq_adamw_create(optimizer, &c->config, slices, c->info.tensor_count);
    if (status == STQ_OK) {
        bool changed = false;
        status = stq_checkpoint_load_optimizer(c->checkpoint, *optimizer, &changed);
        c->changed |= changed;
    }
    free(slices);
    return app_check_asked(status);
}

static enum app_status save_part(struct conversion *c, stq_saver *saver, int64_t rank, const stq_adamw *optimizer) {
    const int64_t ranks = c->settings->ranks;
    stq_array *mine = calloc(c->arrays.count + 1, sizeof(*mine));
    size_t count = 0;
    if (!mine) {
        return app_fail(APP_FAILED, "There is no memory for the list of arrays.");
    }
    int64_t before = 0;
    for (size_t i = 0; i < c->arrays.count; i++) {
        // Whole arrays, in the part in which they begin.
        if (before >= cut(c->array_elements, rank, ranks) &&
            (rank + 1 == ranks || before < cut(c->array_elements, rank + 1, ranks))) {
            mine[count++] = c->arrays.list[i];
        }
        before += c->arrays.list[i].count;
    }
    stq_save_result result;
    stq_save save = {.size = sizeof(save),
                     .step = c->info.step,
                     .optimizer = optimizer,
                     .arrays = mine,
                     .array_count = count,
                     .application = c->info.application};
    stq_status status = stq_saver_save(saver, &save);
    if (status == STQ_OK) {
        status = stq_saver_wait(saver, &result);
        c->published = result.published;
    }
    free(mine);
    return app_check(status);
}

static enum app_status write_part(struct conversion *c, int64_t rank) {
    stq_saver *saver;
    stq_adamw *optimizer;
    stq_saver_config config = {.size = sizeof(config),
                               .folder = c->settings->to,
                               .rank = (uint32_t)rank,
                               .ranks = (uint32_t)c->settings->ranks,
                               .run = c->run};
    enum app_status status = make_optimizer(c, rank, &optimizer);
    if (status == APP_OK) {
        status = app_check(stq_saver_open(&saver, &config));
        if (status == APP_OK) {
            status = save_part(c, saver, rank, optimizer);
            stq_saver_close(saver);
        }
    }
    stq_adamw_destroy(optimizer);
    return status;
}

static enum app_status write_checkpoint(struct conversion *c) {
    enum app_status status = save_refuse_later(c->settings->to, c->info.step);
    if (status == APP_OK) {
        status = read_arrays(c->checkpoint, 0, &c->arrays);
    }
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    c->run = (uint64_t)now.tv_sec << 24 ^ (uint64_t)now.tv_nsec ^ (uint64_t)getpid() << 40 ^ 1;
    if (status == APP_OK) {
        status = describe_tensors(c);
    }
    for (int64_t rank = 0; status == APP_OK && rank < c->settings->ranks; rank++) {
        status = write_part(c, rank);
    }
    if (status == APP_OK && !c->published) {
        status = app_fail(APP_FAILED, "The parts in %s do not make a checkpoint; is something else writing there?",
                          c->settings->to);
    }
    if (status == APP_OK && c->changed && keeps_widths(c->settings)) {
        fprintf(stderr, "warning: second moments that are shared along rows or columns cannot be cut into parts; they "
                        "were coded.\n");
    }
    free(c->tensors);
    free(c->groups);
    return status;
}

// ---- PyTorch's AdamW ----

// Parameters, then three arrays for each tensor of the optimizer. Names and values are owned by the list.
struct torch_file {
    struct arrays arrays;
    char **names;
    size_t name_count;
};

static const stq_array *find(const struct arrays *arrays, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++) {
        if (strcmp(arrays->list[i].name, name) == 0) {
            return &arrays->list[i];
        }
    }
    return NULL;
}

static enum app_status no_memory(const char *name) {
    return app_fail(APP_FAILED, "There is no memory for the states of '%s'.", name);
}

// state.NAME.SUFFIX, in the shape of the parameter.
static float *add_state(struct torch_file *file, const stq_checkpoint_tensor *saved, const stq_array *parameter,
                        const char *suffix, int scalar) {
    char *name = NULL;
    float *values = malloc(scalar ? sizeof(float) : (size_t)saved->tensor.count * sizeof(float));
    if (!values || asprintf(&name, "state.%s.%s", saved->tensor.name, suffix) < 0) {
        free(values);
        return NULL;
    }
    file->names[file->name_count++] = name;
    int64_t shape[] = {saved->tensor.rows, saved->tensor.cols};
    stq_array array = stq_array_whole(name, STQ_FLOAT32, scalar ? 0 : 2, shape, values);
    if (!scalar && parameter && parameter->count == saved->tensor.count) {
        array = stq_array_whole(name, STQ_FLOAT32, parameter->dimensions, parameter->shape, values);
    }
    file->arrays.list[file->arrays.count++] = array;
    return values;
}

static enum app_status add_tensor(struct torch_file *file, const stq_checkpoint *checkpoint, size_t index,
                                  size_t parameters, int64_t steps) {
    static const char *const suffixes[] = {"exp_avg", "exp_avg_sq"};
    stq_checkpoint_tensor saved;
    stq_checkpoint_tensor_info(checkpoint, index, &saved);
    const stq_array *parameter = find(&file->arrays, parameters, saved.tensor.name);
    if (saved.record.bits[0] == 0) {
        return APP_OK; // PyTorch has no state either before the first gradient
    }
    for (int state = 0; state < 2; state++) {
        float *values = add_state(file, &saved, parameter, suffixes[state], 0);
        if (!values) {
            return no_memory(saved.tensor.name);
        }
        if (stq_checkpoint_read_state(checkpoint, index, (stq_state)state, values) != STQ_OK) {
            return app_library_failure();
        }
    }
    float *step = add_state(file, &saved, NULL, "step", 1);
    if (!step) {
        return no_memory(saved.tensor.name);
    }
    *step = (float)(steps - saved.record.missed);
    return APP_OK;
}

static enum app_status write_torch(struct conversion *c) {
    struct torch_file file = {0};
    stq_adamw_record record = {0};
    enum app_status status = read_arrays(c->checkpoint, 1, &file.arrays);
    const size_t parameters = file.arrays.count, most = parameters + 3 * c->info.tensor_count;
    if (status == APP_OK && c->info.tensor_count == 0) {
        status = app_fail(APP_FAILED, "%s holds no optimizer states; --to gpt2 writes weights alone.", c->info.path);
    }
    if (status == APP_OK) {
        stq_checkpoint_record(c->checkpoint, &record);
        stq_array *list = realloc(file.arrays.list, (most + 1) * sizeof(*list));
        file.arrays.list = list ? list : file.arrays.list;
        file.names = calloc(3 * c->info.tensor_count + 1, sizeof(*file.names));
        status = list && file.names ? APP_OK : no_memory(c->info.path);
    }
    for (size_t i = 0; status == APP_OK && i < c->info.tensor_count; i++) {
        status = add_tensor(&file, c->checkpoint, i, parameters, record.steps);
    }
    static const char *const metadata[][2] = {{"format", "pt"}};
    if (status == APP_OK &&
        stq_safetensors_write(c->settings->to, file.arrays.list, file.arrays.count, metadata, 1) != STQ_OK) {
        status = app_library_failure();
    }
    for (size_t i = 0; i < file.name_count; i++) {
        free(file.names[i]); // NOLINT(clang-analyzer-core.NullDereference): without names the count is 0
    }
    free(file.names);
    release_arrays(&file.arrays);
    return status;
}

// ---- Hugging Face's GPT-2 ----

static enum app_status write_config(const char *folder, const struct gpt2_config *config) {
    char *path;
    if (asprintf(&path, "%s/config.json", folder) < 0) {
        return app_fail(APP_FAILED, "There is no memory for a path in %s.", folder);
    }
    json_t *object =
        json_pack("{s:[s], s:s, s:s, s:f, s:I, s:I, s:I, s:I, s:I, s:s, s:b}", "architectures", "GPT2LMHeadModel",
                  "model_type", "gpt2", "activation_function", "gelu_new", "layer_norm_epsilon", 1e-5, "n_layer",
                  (json_int_t)config->layers, "n_embd", (json_int_t)config->width, "n_head", (json_int_t)config->heads,
                  "n_positions", (json_int_t)config->context, "vocab_size", (json_int_t)config->vocabulary,
                  "torch_dtype", "float32", "tie_word_embeddings", 1);
    enum app_status status = log_write_file(path, object);
    free(path);
    return status;
}

// The parameters under the names that they have in GPT2LMHeadModel.
static enum app_status write_weights(const char *folder, const struct parameter_set *set) {
    static const char *const metadata[][2] = {{"format", "pt"}};
    const size_t name_bytes = 64;
    stq_array *arrays = calloc((size_t)set->count, sizeof(*arrays));
    char *names = calloc((size_t)set->count, name_bytes), *path = NULL;
    enum app_status status = APP_OK;
    if (!arrays || !names || asprintf(&path, "%s/model.safetensors", folder) < 0) {
        status = app_fail(APP_FAILED, "There is no memory for the list of %d arrays.", set->count);
    }
    for (int i = 0; status == APP_OK && i < set->count; i++) {
        const struct parameter *parameter = &set->list[i];
        int64_t shape[] = {parameter->rows, parameter->cols};
        char *name = names + (size_t)i * name_bytes;
        snprintf(name, name_bytes, "transformer.%s", parameter->name);
        arrays[i] = stq_array_whole(name, STQ_FLOAT32, (uint32_t)parameter->dimensions,
                                    parameter->dimensions == 1 ? shape + 1 : shape, parameter->values);
    }
    if (status == APP_OK && stq_safetensors_write(path, arrays, (size_t)set->count, metadata, 1) != STQ_OK) {
        status = app_library_failure();
    }
    free(arrays);
    free(names);
    free(path);
    return status;
}

static enum app_status write_gpt2(const struct settings *settings) {
    struct checkpoint_model source;
    struct parameter_set set = {0};
    enum app_status status = checkpoint_model_open(settings->from, 0, &source);
    if (status != APP_OK) {
        return status;
    }
    if (source.is_vit) {
        status = app_fail(APP_USAGE, "%s holds a Vision Transformer, no GPT-2.", settings->from);
    }
    if (status == APP_OK) {
        status = gpt2_describe(&source.gpt2, &set);
    }
    if (status == APP_OK) {
        status = parameters_allocate(&set, 0);
    }
    if (status == APP_OK) {
        status = checkpoint_model_load(&source, &set);
    }
    // Steps are unknown there: their weights are written as the model computes with them.
    if (status == APP_OK && source.gpt2.qat.bits) {
        status = quantizer_round(&set, &source.gpt2.qat);
        set.count -= (int)source.gpt2.layers * 4;
    }
    if (status == APP_OK && mkdir(settings->to, 0777) != 0 && access(settings->to, W_OK) != 0) {
        status = app_fail(APP_FAILED, "Cannot write to the folder %s; give another one.", settings->to);
    }
    if (status == APP_OK) {
        status = write_weights(settings->to, &set);
    }
    if (status == APP_OK) {
        status = write_config(settings->to, &source.gpt2);
    }
    parameters_release(&set);
    checkpoint_model_close(&source);
    return status;
}

// ---- The command ----

static enum app_status check(const struct settings *settings) {
    const int packed = settings->state_bits > 0 || settings->m_bits || settings->v_bits;
    if (settings->state_bits > 0 && (settings->m_bits || settings->v_bits)) {
        return app_fail(APP_USAGE, "--state-bits and --m-bits exclude each other.");
    }
    if ((settings->m_bits == 0) != (settings->v_bits == 0)) {
        return app_fail(APP_USAGE, "--m-bits and --v-bits go together.");
    }
    if (packed && strcmp(settings->format, "checkpoint") != 0) {
        return app_fail(APP_USAGE, "--to %s has no packed states; leave the widths out.", settings->format);
    }
    const int single = strcmp(settings->format, "checkpoint") != 0 && strcmp(settings->format, "float32") != 0;
    if (single && settings->ranks > 1) {
        return app_fail(APP_USAGE, "--to %s is one file; leave --ranks out.", settings->format);
    }
    return APP_OK;
}

static enum app_status convert(const struct settings *settings) {
    enum app_status status = check(settings);
    if (status != APP_OK) {
        return status;
    }
    if (strcmp(settings->format, "gpt2") == 0) {
        return write_gpt2(settings);
    }
    if (strcmp(settings->format, "packed") == 0) {
        return packed_write(settings->from, settings->to);
    }
    struct conversion c = {.settings = settings};
    stq_checkpoint *checkpoint;
    status = resume_open(settings->from, INT64_MAX, &checkpoint);
    if (status != APP_OK) {
        return status;
    }
    c.checkpoint = checkpoint;
    stq_checkpoint_describe(checkpoint, &c.info);
    status = strcmp(settings->format, "torch") == 0 ? write_torch(&c) : write_checkpoint(&c);
    release_arrays(&c.arrays);
    stq_checkpoint_close(checkpoint);
    return status;
}

int command_convert(int argc, char **argv) {
    struct settings settings = {.format = "checkpoint", .ranks = 1};
    argp_parse(&argp, argc, argv, 0, NULL, &settings);
    enum app_status status = convert(&settings);
    if (status == APP_OK) {
        printf("%s is written\n", settings.to);
    }
    return command_report(argv[0], status);
}
