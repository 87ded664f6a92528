// `stquant train`: puts together text, model, optimizer and log, runs the loop, prints a table.
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "train/loop.h"
#include "train/matmul.h"
#include "train/memory.h"
#include "train/progress.h"
#include "train/sample.h"
#include "train/text.h"
#include "train/token_file.h"
#include "train_options.h"

struct training {
    const struct train_options *options;
    struct gpt2_config config;
    struct optimizer_settings optimizer_settings;
    struct sample_settings sample_settings;
    struct text text;         // of --data, unless it is a token file
    struct token_file tokens; // otherwise
    struct tokenizer *tokenizer;
    struct sequence sequence; // one or the other
    struct model *model;
    struct batch_source *data;
    struct optimizer optimizer;
    struct log *log;
};

static int has_tokens(const struct training *training) { return training->tokenizer != NULL; }

// Opens --data when it is a token file, which decides the vocabulary.
static enum app_status open_tokens(struct training *training) {
    const struct train_options *options = training->options;
    for (int i = 0; i < options->data_count; i++) {
        if (!token_file_recognise(options->data[i])) {
            continue;
        }
        if (options->data_count > 1) {
            return app_fail(APP_USAGE, "%s is a token file, which is used alone; prepare one file of all the text.",
                            options->data[i]);
        }
        enum app_status status = token_file_open(options->data[i], &training->tokens);
        return status != APP_OK
                   ? status
                   : tokenizer_create(options->data[i], training->tokens.merges,
                                      training->tokens.vocabulary - TOKENIZER_BYTES - 1, &training->tokenizer);
    }
    return APP_OK;
}

static enum app_status load_text(struct training *training) {
    const struct train_options *options = training->options;
    const struct token_file *tokens = &training->tokens;
    for (int i = 0; i < options->data_count && !has_tokens(training); i++) {
        enum app_status status = text_add(&training->text, options->data[i]);
        if (status != APP_OK) {
            return status;
        }
    }
    training->sequence = has_tokens(training) ? (struct sequence){tokens->tokens, tokens->token_bytes, tokens->count}
                                              : (struct sequence){training->text.bytes, 1, training->text.count};
    struct text_source_settings settings = {.batch = options->batch,
                                            .length = options->sequence_length,
                                            .validation_share = options->validation_share,
                                            .validation_batches = options->validation_batches,
                                            .seed = (uint64_t)options->seed};
    return text_source_create(&training->sequence, &settings, &training->data);
}

// What the run will take, from the plans of its parts.
struct demand {
    int64_t parameters, gradients, states, activations, text, total;
};

static enum app_status plan_memory(const struct training *training, struct demand *demand) {
    const struct train_options *options = training->options;
    struct parameter_set set = {0};
    stq_memory states;
    enum app_status status = gpt2_describe(&training->config, &set);
    if (status == APP_OK) {
        status = optimizer_plan(&training->optimizer_settings, &set, &states);
    }
    if (status == APP_OK) {
        *demand = (struct demand){
            .parameters = set.padded * 4,
            .gradients = set.padded * 4,
            .states = (int64_t)states.state_bytes,
            .activations = gpt2_activation_bytes(&training->config, options->batch, options->sequence_length)};
        demand->total = demand->parameters + demand->gradients + demand->states + demand->activations;
    }
    parameters_release(&set);
    return status;
}

static enum app_status check_memory(const struct training *training, struct demand *demand) {
    char needed[32], available_text[32], parts[4][32];
    enum app_status status = plan_memory(training, demand);
    if (status != APP_OK) {
        return status;
    }
    int64_t available = memory_available();
    if (available == 0 || demand->total <= available) {
        return APP_OK;
    }
    return app_fail(APP_FAILED,
                    "The run needs %s (parameters %s, gradients %s, states %s, activations %s) and %s are available; "
                    "choose a smaller model, --batch or --sequence-length.",
                    memory_text(demand->total, needed), memory_text(demand->parameters, parts[0]),
                    memory_text(demand->gradients, parts[1]), memory_text(demand->states, parts[2]),
                    memory_text(demand->activations, parts[3]), memory_text(available, available_text));
}

static void print_head(const struct training *training, const struct demand *demand) {
    const struct train_options *options = training->options;
    const struct gpt2_config *config = &training->config;
    char bytes[5][32];
    printf("model      gpt2 %s: %lld layers, width %lld, %lld heads, context %lld, vocabulary %lld; %.2f million "
           "parameters\n",
           options->model.preset->name, (long long)config->layers, (long long)config->width, (long long)config->heads,
           (long long)config->context, (long long)config->vocabulary,
           (double)training->model->parameters.elements / 1e6);
    int64_t count = training->sequence.count;
    int64_t kept = count - sequence_training_count(&training->sequence, options->validation_share);
    if (has_tokens(training)) {
        printf("text       %lld documents, %lld tokens; the last %lld are the validation set\n",
               (long long)training->tokens.documents, (long long)count, (long long)kept);
    } else {
        printf("text       %lld file%s, %s; the last %s are the validation set\n", (long long)training->text.documents,
               training->text.documents == 1 ? "" : "s", memory_text(count, bytes[0]), memory_text(kept, bytes[1]));
    }
    printf("steps      %lld of %lld x %lld tokens; learning rate %g, seed %lld, %lld threads\n",
           (long long)options->steps, (long long)(options->batch * options->accumulation),
           (long long)options->sequence_length, options->learning_rate, (long long)options->seed,
           (long long)options->threads);
    printf("memory     parameters %s, gradients %s, activations %s\n", memory_text(demand->parameters, bytes[0]),
           memory_text(demand->gradients, bytes[1]), memory_text(demand->activations, bytes[2]));
    printf("optimizer  %s: states %s; float32 states would take %s\n", options->optimizer,
           memory_text(demand->states, bytes[3]), memory_text(2 * demand->parameters, bytes[4]));
    fflush(stdout);
}

static enum app_status make_sample(void *context, int64_t step, char **text) {
    struct training *training = context;
    return sample_gpt2(training->model, &training->sample_settings, (uint64_t)step, text);
}

// What the log's first line and the summary tell of the run.
static json_t *describe_run(const struct training *training) {
    const struct train_options *options = training->options;
    const struct gpt2_config *config = &training->config;
    return json_pack("{s:s, s:s, s:{s:I, s:I, s:I, s:I, s:I}, s:I, s:s, s:o, s:I, s:I, s:I, s:I, s:f, s:f, s:I, s:I}",
                     "model", "gpt2", "preset", options->model.preset->name, "shape", "layers",
                     (json_int_t)config->layers, "width", (json_int_t)config->width, "heads", (json_int_t)config->heads,
                     "context", (json_int_t)config->context, "vocabulary", (json_int_t)config->vocabulary, "parameters",
                     (json_int_t)training->model->parameters.elements, "optimizer", options->optimizer, "state_bits",
                     strcmp(options->optimizer, "stquant") == 0
                         ? json_real(training->optimizer_settings.policy.state_bits)
                         : json_null(),
                     "steps", (json_int_t)options->steps, "batch", (json_int_t)options->batch, "gradient_accumulation",
                     (json_int_t)options->accumulation, "sequence_length", (json_int_t)options->sequence_length,
                     "learning_rate", options->learning_rate, "beta2", options->beta2, "seed",
                     (json_int_t)options->seed, "threads", (json_int_t)options->threads);
}

static enum app_status write_summary(const struct training *training, const struct loop_outcome *outcome,
                                     const stq_memory *memory) {
    json_t *object = describe_run(training);
    double float32_bytes = 8.0 * (double)memory->parameters;
    json_t *figures =
        json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:f, s:I, s:I, s:f, s:f, s:f, s:f, s:I}", "steps_done",
                  (json_int_t)outcome->steps, "train_loss", log_number(outcome->train_loss), "validation_loss",
                  log_number(outcome->validation_loss), "step_ms", log_number(outcome->step_ms), "optimizer_ms",
                  log_number(outcome->optimizer_ms), "tokens_per_s", log_number(outcome->tokens_per_second), "seconds",
                  outcome->seconds, "state_bytes", (json_int_t)memory->state_bytes, "peak_state_bytes",
                  (json_int_t)memory->peak_bytes, "all_in_bits", memory->all_in_bits, "final_all_in_bits",
                  memory->final_bits, "peak_all_in_bits", memory->peak_bits, "memory_reduction",
                  1 - (double)memory->peak_bytes / float32_bytes, "skipped_steps", (json_int_t)outcome->skipped);
    json_object_update(object, figures);
    json_decref(figures);
    if (outcome->sample) {
        json_object_set_new(object, "sample", json_string(outcome->sample));
    }
    return log_write_file(training->options->summary, object);
}

static void print_table(const struct loop_outcome *outcome, const stq_memory *memory, const char *token) {
    char duration[32], now[32], peak[32], float32[32], process[32];
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("\nsteps               %lld in %s", (long long)outcome->steps,
           progress_duration(outcome->seconds, duration));
    printf(outcome->skipped ? ", %lld skipped\n" : "\n", (long long)outcome->skipped);
    if (!isnan(outcome->validation_loss)) {
        printf("validation loss     %.4f nats a %s (%.3f bits)\n", outcome->validation_loss, token,
               outcome->validation_loss / log(2));
    }
    printf("training loss       %.4f\n", outcome->train_loss);
    printf("step                %.2f ms, of which the optimizer %.2f ms; %.1fk tokens/s\n", outcome->step_ms,
           outcome->optimizer_ms, outcome->tokens_per_second / 1000);
    printf("states now          %s, %.3f bits a value\n", memory_text((int64_t)memory->state_bytes, now),
           memory->final_bits);
    printf("states at the peak  %s, %.3f bits a value\n", memory_text((int64_t)memory->peak_bytes, peak),
           memory->peak_bits);
    printf("float32 states      %s, 32 bits a value: %.1f %% saved\n",
           memory_text(8 * (int64_t)memory->parameters, float32),
           100 * (1 - (double)memory->peak_bytes / (8.0 * (double)memory->parameters)));
    printf("whole process       %s at the peak\n", memory_text((int64_t)usage.ru_maxrss * 1024, process));
}

static enum app_status run_loop(struct training *training, struct loop_outcome *outcome) {
    const struct train_options *options = training->options;
    json_t *run = describe_run(training);
    struct loop loop = {.settings = {.schedule = {.learning_rate = options->learning_rate,
                                                  .floor = options->floor,
                                                  .warmup = options->warmup,
                                                  .steps = options->steps},
                                     .accumulation = options->accumulation,
                                     .validate_every = options->validate_every,
                                     .sample_every = options->sample_every,
                                     .sample = options->sample_length ? make_sample : NULL,
                                     .sample_context = training},
                        .model = training->model,
                        .data = training->data,
                        .optimizer = &training->optimizer,
                        .log = training->log,
                        .run = run};
    enum app_status status = loop_run(&loop, outcome);
    json_decref(run);
    return status;
}

static enum app_status prepare(struct training *training) {
    const struct train_options *options = training->options;
    struct demand demand;
    enum app_status status = open_tokens(training);
    const int64_t needed = has_tokens(training) ? training->tokens.vocabulary : 256;
    training->config = command_model_config(&options->model, needed);
    training->sample_settings.tokenizer = training->tokenizer;
    if (status == APP_OK) {
        status = gpt2_check(&training->config);
    }
    if (status == APP_OK && options->sequence_length > training->config.context) {
        status = app_fail(APP_USAGE, "--sequence-length %lld is longer than the model's --context %lld.",
                          (long long)options->sequence_length, (long long)training->config.context);
    }
    if (status == APP_OK && training->config.vocabulary < needed) {
        status = app_fail(APP_USAGE, "--vocabulary %lld is too small for the data; it must be %lld or more.",
                          (long long)training->config.vocabulary, (long long)needed);
    }
    if (status == APP_OK) {
        status = train_options_optimizer(options, &training->optimizer_settings);
    }
    if (status == APP_OK) {
        status = check_memory(training, &demand);
    }
    if (status == APP_OK) {
        status = load_text(training);
    }
    if (status == APP_OK) {
        status = gpt2_create(&training->config, options->batch, options->sequence_length, (int)options->threads,
                             (uint64_t)options->seed, &training->model);
    }
    if (status == APP_OK) {
        status = optimizer_create(&training->optimizer, &training->optimizer_settings, &training->model->parameters);
    }
    if (status == APP_OK && options->log) {
        status = log_open(options->log, &training->log);
    }
    if (status == APP_OK) {
        print_head(training, &demand);
    }
    return status;
}

static enum app_status train(struct training *training, int *signal_number) {
    struct loop_outcome outcome = {0};
    enum app_status status = prepare(training);
    if (status != APP_OK) {
        return status;
    }
    status = run_loop(training, &outcome);
    if (status == APP_OK) {
        stq_memory memory = optimizer_memory(&training->optimizer);
        if (outcome.signal) {
            printf("Stopped by a signal after step %lld of %lld.\n", (long long)outcome.steps,
                   (long long)training->options->steps);
        }
        print_table(&outcome, &memory, has_tokens(training) ? "token" : "byte");
        if (training->options->summary && !outcome.signal) {
            status = write_summary(training, &outcome, &memory);
        }
    }
    if (status == APP_OK && fflush(stdout) != 0) {
        status = app_fail(APP_FAILED, "Writing to standard output failed; is the disk full?");
    }
    *signal_number = outcome.signal;
    free(outcome.sample);
    return status;
}

static void release(struct training *training) {
    optimizer_release(&training->optimizer);
    if (training->data) {
        training->data->operations->destroy(training->data);
    }
    if (training->model) {
        training->model->operations->destroy(training->model);
    }
    text_release(&training->text);
    token_file_close(&training->tokens);
    tokenizer_destroy(training->tokenizer);
    matmul_release();
}

int command_train(int argc, char **argv) {
    struct train_options options;
    int signal_number = 0;
    train_options_parse(&options, argc, argv);
    options.threads = options.threads ? options.threads : omp_get_max_threads();
    struct training training = {.options = &options,
                                .sample_settings = {.length = options.sample_length,
                                                    .temperature = options.temperature,
                                                    .prompt = options.prompt,
                                                    .seed = (uint64_t)options.seed}};
    enum app_status status = train(&training, &signal_number);
    enum app_status closed = log_close(training.log);
    status = status == APP_OK ? closed : status;
    release(&training);
    free(options.data);
    int reported = command_report(argv[0], status);
    return signal_number && reported == 0 ? 128 + signal_number : reported;
}
