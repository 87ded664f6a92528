// `stquant train`: puts together data, model, optimizer and log, runs the loop, prints a table.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "train/matmul.h"
#include "train/memory.h"
#include "train/progress.h"
#include "train/save.h"
#include "training.h"

// Seconds that a rank waits for the others in one operation: a rank that died is told about in time.
enum { RANK_TIMEOUT = 25, SECONDS_TO_LEAVE = 5 };

static enum app_status plan_memory(const struct training *training, struct demand *demand) {
    struct parameter_set set = {0};
    stq_memory states;
    enum app_status status = training->kind->describe(training, &set);
    if (status == APP_OK) {
        status = optimizer_plan(&training->optimizer_settings, &set, &states);
    }
    if (status == APP_OK) {
        *demand = (struct demand){.parameters = set.padded * 4,
                                  .gradients = set.padded * 4,
                                  .states = (int64_t)states.state_bytes,
                                  .activations = training->kind->activation_bytes(training)};
        demand->device = demand->parameters + demand->gradients + demand->states / training->ranks.count;
        demand->total = demand->parameters + demand->gradients + demand->activations;
        demand->total += training->device ? 0 : demand->states;
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
    status = training->device ? device_check_memory(training->device, demand->device) : APP_OK;
    int64_t available = memory_available();
    if (status != APP_OK || available == 0 || demand->total <= available) {
        return status;
    }
    return app_fail(APP_FAILED,
                    "The run needs %s (parameters %s, gradients %s, states %s, activations %s) and %s are available; "
                    "choose a smaller model or --batch.",
                    memory_text(demand->total, needed), memory_text(demand->parameters, parts[0]),
                    memory_text(demand->gradients, parts[1]),
                    memory_text(training->device ? 0 : demand->states, parts[2]),
                    memory_text(demand->activations, parts[3]), memory_text(available, available_text));
}

static void print_qat(const stq_qat_config *qat) {
    if (!qat->bits) {
        return;
    }
    printf("weights    attention and MLP at %u bits, ", qat->bits);
    if (qat->estimator == STQ_QAT_STRAIGHT_THROUGH) {
        printf("straight-through gradients\n");
    } else if (qat->estimator == STQ_QAT_SOFT) {
        printf("DSQ gradients of softness %g\n", qat->softness);
    } else {
        printf("stable gradients of amplitude%s", qat->harmonics > 1 ? "s" : "");
        for (uint32_t k = 0; k < qat->harmonics; k++) {
            printf(k ? ", %g" : " %g", qat->amplitudes[k]);
        }
        printf("\n");
    }
}

static void print_head(const struct training *training, const struct demand *demand) {
    char bytes[5][32];
    training->kind->print_head(training);
    printf("memory     parameters %s, gradients %s, activations %s\n", memory_text(demand->parameters, bytes[0]),
           memory_text(demand->gradients, bytes[1]), memory_text(demand->activations, bytes[2]));
    printf("optimizer  %s: states %s; float32 states would take %s\n", training->options->optimizer,
           memory_text(demand->states, bytes[3]), memory_text(2 * demand->parameters, bytes[4]));
    if (training->device) {
        printf("device     GPU %d, %s: states, and copies of parameters and gradients, %s%s\n", training->device->index,
               training->device->name, memory_text(demand->device, bytes[0]),
               training->ranks.count > 1 ? " on every rank's GPU" : "");
    }
    print_qat(&training->options->qat);
    fflush(stdout);
}

// What the log and the checkpoints tell of quantization-aware training; checkpoint_model.c reads it.
static void describe_qat(const struct train_options *options, json_t *run) {
    const stq_qat_config *qat = &options->qat;
    if (!qat->bits) {
        return;
    }
    json_object_set_new(run, "qat_bits", json_integer(qat->bits));
    json_object_set_new(run, "qat_estimator", json_string(quantizer_estimators[qat->estimator]));
    json_object_set_new(run, "qat_step_rate", json_real(options->qat_step_rate));
    if (qat->estimator == STQ_QAT_STABLE) {
        json_t *amplitudes = json_array();
        for (uint32_t k = 0; k < qat->harmonics; k++) {
            json_array_append_new(amplitudes, json_real(qat->amplitudes[k]));
        }
        json_object_set_new(run, "qat_amplitudes", amplitudes);
    } else if (qat->estimator == STQ_QAT_SOFT) {
        json_object_set_new(run, "qat_softness", json_real(qat->softness));
    }
}

json_t *training_describe(const struct training *training) {
    const struct train_options *options = training->options;
    const int adaptive = strcmp(options->optimizer, "stquant") == 0;
    json_t *run = json_object();
    training->kind->describe_run(training, run);
    json_t *rest =
        json_pack("{s:I, s:s, s:o, s:I, s:I, s:I, s:f, s:f, s:I, s:I}", "parameters",
                  (json_int_t)training->model->parameters.elements, "optimizer", options->optimizer, "state_bits",
                  adaptive ? json_real(training->optimizer_settings.policy.state_bits) : json_null(), "steps",
                  (json_int_t)options->steps, "batch", (json_int_t)options->batch, "gradient_accumulation",
                  (json_int_t)options->accumulation, "learning_rate", options->learning_rate, "beta2", options->beta2,
                  "seed", (json_int_t)options->seed, "threads", (json_int_t)options->threads);
    json_object_update(run, rest);
    json_decref(rest);
    describe_qat(options, run);
    return run;
}

// The same, with where the optimizer is: this decides nothing, and checkpoints do not tell it.
static json_t *describe_with_device(const struct training *training) {
    const struct device *device = training->device;
    json_t *run = training_describe(training);
    json_object_set_new(run, "device", json_string(device ? "cuda" : "cpu"));
    if (device) {
        json_object_set_new(run, "gpu", json_string(device->name));
    }
    return run;
}

static enum app_status write_summary(const struct training *training, const struct loop_outcome *outcome,
                                     const stq_memory *memory) {
    json_t *object = describe_with_device(training);
    char speed_key[32];
    double float32_bytes = 8.0 * (double)memory->parameters;
    snprintf(speed_key, sizeof(speed_key), "%s_per_s", training->data->unit);
    json_t *figures =
        json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:f, s:I, s:I, s:f, s:f, s:f, s:f, s:I}", "steps_done",
                  (json_int_t)outcome->steps, "train_loss", log_number(outcome->train_loss), "validation_loss",
                  log_number(outcome->validation_loss), "step_ms", log_number(outcome->step_ms), "optimizer_ms",
                  log_number(outcome->optimizer_ms), speed_key, log_number(outcome->per_second), "seconds",
                  outcome->seconds, "state_bytes", (json_int_t)memory->state_bytes, "peak_state_bytes",
                  (json_int_t)memory->peak_bytes, "all_in_bits", memory->all_in_bits, "final_all_in_bits",
                  memory->final_bits, "peak_all_in_bits", memory->peak_bits, "memory_reduction",
                  1 - (double)memory->peak_bytes / float32_bytes, "skipped_steps", (json_int_t)outcome->skipped);
    json_object_update(object, figures);
    json_decref(figures);
    if (!isnan(outcome->validation_top1)) {
        json_object_set_new(object, "validation_top1", json_real(outcome->validation_top1));
    }
    if (outcome->sample) {
        json_object_set_new(object, "sample", json_string(outcome->sample));
    }
    return log_write_file(training->options->summary, object);
}

static void print_table(const struct training *training, const struct loop_outcome *outcome, const stq_memory *memory) {
    char duration[32], rate[32], now[32], peak[32], float32[32], process[32];
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("\nsteps               %lld in %s", (long long)outcome->steps,
           progress_duration(outcome->seconds, duration));
    printf(outcome->skipped ? ", %lld skipped\n" : "\n", (long long)outcome->skipped);
    if (!isnan(outcome->validation_loss)) {
        printf("validation loss     %.4f nats a%s (%.3f bits)\n", outcome->validation_loss,
               training->kind->unit(training), outcome->validation_loss / log(2));
    }
    if (!isnan(outcome->validation_top1)) {
        printf("top-1               %.2f %% of the validation set\n", 100 * outcome->validation_top1);
    }
    printf("training loss       %.4f\n", outcome->train_loss);
    printf("step                %.2f ms, of which the optimizer %.2f ms; %s\n", outcome->step_ms, outcome->optimizer_ms,
           progress_rate(outcome->per_second, training->data->unit, rate));
    printf("states now          %s, %.3f bits a value\n", memory_text((int64_t)memory->state_bytes, now),
           memory->final_bits);
    printf("states at the peak  %s, %.3f bits a value\n", memory_text((int64_t)memory->peak_bytes, peak),
           memory->peak_bits);
    printf("float32 states      %s, 32 bits a value: %.1f %% saved\n",
           memory_text(8 * (int64_t)memory->parameters, float32),
           100 * (1 - (double)memory->peak_bytes / (8.0 * (double)memory->parameters)));
    printf("whole process       %s at the peak\n", memory_text((int64_t)usage.ru_maxrss * 1024, process));
}

static struct save_source save_source(const struct training *training) {
    return (struct save_source){.optimizer = training->optimizer.adamw,
                                .parameters = &training->model->parameters,
                                .application = training->application};
}

static const char *after_step(void *context, int64_t step) {
    struct training *training = context;
    struct save_source source = save_source(training);
    return saving_step(training->saving, &source, step);
}

static enum app_status run_loop(struct training *training, struct loop_outcome *outcome) {
    const struct train_options *options = training->options;
    json_t *run = describe_with_device(training);
    struct loop loop = {.settings = {.schedule = {.learning_rate = options->learning_rate,
                                                  .floor = options->floor,
                                                  .warmup = options->warmup,
                                                  .steps = options->steps},
                                     .first_step = training->first_step,
                                     .accumulation = options->accumulation,
                                     .validate_every = options->validate_every,
                                     .sample_every = options->sample_every,
                                     .sample = training->sample,
                                     .sample_context = training,
                                     .after_step = after_step,
                                     .after_step_context = training},
                        .model = training->model,
                        .data = training->data,
                        .optimizer = &training->optimizer,
                        .ranks = &training->ranks,
                        .log = training->log,
                        .events = training->events,
                        .trace = training->trace,
                        .run = run};
    enum app_status status = loop_run(&loop, outcome);
    json_decref(run);
    return status;
}

// Every rank computes the gradients of its part of a batch.
static enum app_status share_batch(struct training *training) {
    const int64_t batch = training->options->batch;
    const int ranks = training->ranks.count;
    training->batch = batch / ranks;
    if (batch % ranks == 0) {
        return APP_OK;
    }
    return app_fail(APP_USAGE,
                    "A batch of %lld cannot be shared out evenly over %d ranks; make --batch a multiple of %d.",
                    (long long)batch, ranks, ranks);
}

static enum app_status open_outputs(struct training *training) {
    const struct train_options *options = training->options;
    const int first = training->ranks.rank == 0;
    enum app_status status = APP_OK;
    if (options->log && first) {
        status = log_open(options->log, training->first_step, &training->log);
    }
    if (status == APP_OK && options->tensorboard && first) {
        status = event_file_open(options->tensorboard, &training->events);
    }
    if (status == APP_OK && options->trace) {
        status = trace_open(options->trace, &training->optimizer, &training->trace);
    }
    return status;
}

static enum app_status create_optimizer(struct training *training) {
    const struct parameter_set *parameters = &training->model->parameters;
    struct device *device = training->device;
    enum app_status status = device ? device_mirror(device, parameters) : APP_OK;
    if (status != APP_OK) {
        return status;
    }
    return optimizer_create(&training->optimizer, &training->optimizer_settings, parameters,
                            device ? device->comm : training->ranks.comm, device);
}

static enum app_status prepare(struct training *training) {
    const struct train_options *options = training->options;
    struct demand demand;
    enum app_status status = share_batch(training);
    if (status == APP_OK) {
        status = device_open(&options->device, &training->ranks, RANK_TIMEOUT, &training->device);
    }
    if (status == APP_OK) {
        status = training->kind->settle(training);
    }
    if (status == APP_OK) {
        status = train_options_optimizer(options, &training->optimizer_settings);
    }
    if (status == APP_OK) {
        status = check_memory(training, &demand);
    }
    if (status == APP_OK) {
        status = training->kind->load(training);
    }
    if (status == APP_OK) {
        status = training->kind->create_model(training);
    }
    if (status == APP_OK) {
        status = create_optimizer(training);
    }
    if (status == APP_OK) {
        print_head(training, &demand);
    }
    if (status == APP_OK && options->init && !options->resume) {
        status = training_init(training);
    }
    if (status == APP_OK && options->resume) {
        status = training_resume(training);
    }
    if (status == APP_OK) {
        status = training_open_saving(training);
    }
    if (status == APP_OK) {
        status = open_outputs(training);
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
    enum app_status saved = APP_OK;
    if (status == APP_OK) {
        struct save_source source = save_source(training);
        saved = saving_finish(training->saving, &source, outcome.steps);
        stq_memory memory = optimizer_memory(&training->optimizer);
        if (outcome.signal) {
            printf("Stopped by a signal after step %lld of %lld.\n", (long long)outcome.steps,
                   (long long)training->options->steps);
        }
        print_table(training, &outcome, &memory);
        if (training->options->summary && !outcome.signal && training->ranks.rank == 0) {
            status = write_summary(training, &outcome, &memory);
        }
    }
    status = status == APP_OK ? saved : status;
    *signal_number = outcome.signal;
    free(outcome.sample);
    return status;
}

int training_run(struct training *training, const char *command) {
    int signal_number = 0;
    enum app_status status = ranks_open(&training->ranks, RANK_TIMEOUT);
    if (status == APP_OK) {
        status = train(training, &signal_number);
    }
    enum app_status closed = log_close(training->log), events_closed = event_file_close(training->events);
    closed = closed == APP_OK ? events_closed : closed;
    status = status == APP_OK ? closed : status;
    closed = trace_close(training->trace);
    status = status == APP_OK ? closed : status;
    saving_close(training->saving);
    json_decref(training->application);
    optimizer_release(&training->optimizer);
    device_close(training->device, status != APP_OK || signal_number);
    if (training->data) {
        training->data->operations->destroy(training->data);
    }
    if (training->model) {
        training->model->operations->destroy(training->model);
    }
    matmul_release();
    // After a signal nobody is waited for who does not take what was printed.
    int reported = signal_number && status == APP_OK ? 0 : command_report(command, status);
    // Everything is on the disk: a rank that hangs must not keep the others from leaving.
    if (signal_number && training->ranks.count > 1) {
        alarm(SECONDS_TO_LEAVE);
    }
    ranks_close(&training->ranks, reported);
    return signal_number && reported == 0 ? 128 + signal_number : reported;
}

int command_train(int argc, char **argv) {
    static const struct command_entry models[] = {{"gpt2", "a GPT-2, on text", command_train_gpt2},
                                                  {"vit", "a Vision Transformer, on images", command_train_vit}};
    static const struct command_group group = {.name = "stquant train",
                                               .doc = "Trains a model, with float32 or low-bit optimizer states.",
                                               .kind = "model",
                                               .options = "",
                                               .details =
                                                   "`stquant train MODEL --help` tells more.\n\n"
                                                   "Examples:\n\n"
                                                   "  stquant train gpt2 --data text.txt --log run.jsonl\n"
                                                   "  stquant train vit --data /usr/share/datasets/fashion-mnist\n",
                                               .entries = models,
                                               .count = 2};
    return command_run_group(&group, argc, argv);
}
