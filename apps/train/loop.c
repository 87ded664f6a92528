#include "train/loop.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/progress.h"
#include "train/telemetry.h"
#include "train/tensorboard.h"

// A run whose gradients stay infinite does not recover.
enum { SKIPS_TO_GIVE_UP = 20 };

static volatile sig_atomic_t stop_signal;

// Once told to end, a rank waits no longer than this for one that may be dead.
enum { SECONDS_FOR_OTHERS = 12 };

static void request_stop(int number) {
    stop_signal = number;
    ranks_hurry(SECONDS_FOR_OTHERS);
    progress_hurry();
}

// The first signal asks for a stop. A second Ctrl-C ends the process as usual; a second SIGTERM says nothing new:
// mpirun sends it twice.
static void catch_signals(struct sigaction before[2]) {
    struct sigaction action = {.sa_handler = request_stop, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    stop_signal = 0;
    sigaction(SIGTERM, &action, &before[1]);
    action.sa_flags = (int)SA_RESETHAND | SA_RESTART;
    sigaction(SIGINT, &action, &before[0]);
}

// A run that was told to end has a checkpoint to write yet, which another SIGTERM must not break off.
static void release_signals(const struct sigaction before[2], int stopped) {
    sigaction(SIGINT, &before[0], NULL);
    if (!stopped) {
        sigaction(SIGTERM, &before[1], NULL);
    }
}

// One step's figures.
struct step {
    int64_t number;
    double learning_rate, train_loss;
    double validation_loss, validation_top1; // NaN where there are none
    double seconds, optimizer_seconds;
    double state_bytes, peak_state_bytes; // of all ranks
    stq_step_result result;
    char *sample;
};

// The state of a running loop.
struct run {
    struct loop *loop;
    struct progress progress;
    float *step_seconds, *optimizer_seconds; // (steps of this run)
    int64_t recorded, skipped_in_a_row;
    int stop; // the signal that ends the run, agreed by all ranks; 0 for none
};

// A rank's watch on the backward pass: complete gradients are summed over the ranks while the rest is computed.
static void gradients_ready(void *context, int first, int count) {
    const struct loop *loop = context;
    optimizer_gradients_ready(loop->optimizer, first, count);
}

// The ranks' losses, their memory and whether any was told to stop, in one message.
static enum app_status agree(struct run *run, struct step *step) {
    const struct ranks *ranks = run->loop->ranks;
    stq_memory memory = optimizer_memory(run->loop->optimizer);
    double numbers[] = {step->train_loss, (double)memory.state_bytes, (double)memory.peak_bytes, stop_signal != 0};
    enum app_status status = ranks_sum(ranks, numbers, 4, "losses");
    step->train_loss = numbers[0] / ranks->count;
    step->state_bytes = numbers[1];
    step->peak_state_bytes = numbers[2];
    if (numbers[3] > 0) {
        run->stop = stop_signal ? stop_signal : SIGTERM;
    }
    return status;
}

static enum app_status train_step(struct run *run, struct step *step) {
    const struct loop *loop = run->loop;
    const struct loop_settings *settings = &loop->settings;
    const float factor = 1.0f / (float)(settings->accumulation * loop->ranks->count);
    double begin = clock_seconds();
    step->learning_rate = schedule_rate(&settings->schedule, step->number);
    step->train_loss = 0;
    parameters_clear_gradients(&loop->model->parameters);
    for (int64_t micro = 0; micro < settings->accumulation; micro++) {
        struct batch batch;
        double loss = 0;
        const int last = micro == settings->accumulation - 1;
        loop->model->watch = (struct gradient_watch){last ? gradients_ready : NULL, run->loop};
        loop->data->operations->training(loop->data, (step->number - 1) * settings->accumulation + micro, &batch);
        enum app_status status = loop->model->operations->forward_backward(loop->model, &batch, factor, &loss);
        if (status != APP_OK) {
            return status;
        }
        step->train_loss += loss / (double)settings->accumulation;
    }
    double before_optimizer = clock_seconds();
    enum app_status status = optimizer_step(loop->optimizer, step->learning_rate, &step->result);
    double end = clock_seconds();
    step->optimizer_seconds = end - before_optimizer;
    step->seconds = end - begin;
    if (status == APP_OK) {
        status = trace_step(loop->trace, loop->optimizer, step->number, &step->result);
    }
    return status == APP_OK ? agree(run, step) : status;
}

enum app_status loop_validate(struct model *model, struct batch_source *data, const struct ranks *ranks, double *loss,
                              double *top1) {
    double sum = 0;
    int64_t examples = 0, correct = 0;
    for (int64_t index = ranks->rank; index < data->validation_batches; index += ranks->count) {
        struct batch batch;
        double batch_loss = 0;
        data->operations->validation(data, index, &batch);
        enum app_status status = model->operations->evaluate(model, &batch, &batch_loss);
        if (status != APP_OK) {
            return status;
        }
        sum += batch_loss * (double)batch.examples;
        examples += batch.examples;
        correct += model->correct;
    }
    double numbers[] = {sum, (double)examples, (double)correct};
    enum app_status status = ranks_sum(ranks, numbers, 3, "validation losses");
    *loss = numbers[0] / numbers[1];
    *top1 = model->correct < 0 ? NAN : numbers[2] / numbers[1];
    return status;
}

// Tokens or images of a step, over all ranks.
static double step_items(const struct loop *loop) {
    return (double)(loop->data->items * loop->settings.accumulation * loop->ranks->count);
}

static double mean_bits(const struct loop *loop, const struct step *step) {
    return 4 * step->state_bytes / (double)loop->model->parameters.elements;
}

static enum app_status log_step(const struct loop *loop, const struct step *step) {
    if (!loop->log) {
        return APP_OK;
    }
    char speed_key[32];
    snprintf(speed_key, sizeof(speed_key), "%s_per_s", loop->data->unit);
    json_t *line =
        json_pack("{s:I, s:o, s:o, s:o, s:o, s:I, s:I, s:o}", "step", (json_int_t)step->number, "train_loss",
                  log_number(step->train_loss), "learning_rate", log_number(step->learning_rate), "gradient_norm",
                  log_number(step->result.gradient_norm), speed_key, log_number(step_items(loop) / step->seconds),
                  "state_bytes", (json_int_t)step->state_bytes, "peak_state_bytes", (json_int_t)step->peak_state_bytes,
                  "mean_bits", log_number(mean_bits(loop, step)));
    if (loop->ranks->count > 1) {
        json_object_set_new(line, "ranks", json_integer(loop->ranks->count));
        json_object_set_new(line, "state_bytes_per_rank",
                            json_integer((json_int_t)(step->state_bytes / loop->ranks->count)));
    }
    if (!isnan(step->validation_loss)) {
        json_object_set_new(line, "validation_loss", log_number(step->validation_loss));
    }
    if (!isnan(step->validation_top1)) {
        json_object_set_new(line, "validation_top1", json_real(step->validation_top1));
    }
    if (step->result.skipped) {
        json_object_set_new(line, "skipped", json_true());
    }
    if (step->result.decided) {
        telemetry_add(loop->optimizer, line);
    }
    if (step->sample) {
        json_object_set_new(line, "sample", json_string(step->sample));
    }
    if (loop->run && step->number == loop->settings.first_step + 1) {
        json_object_set(line, "run", loop->run);
    }
    return log_write(loop->log, line);
}

static enum app_status write_events(const struct loop *loop, const struct step *step) {
    const struct tensorboard_step shown = {.step = step->number,
                                           .train_loss = step->train_loss,
                                           .validation_loss = step->validation_loss,
                                           .validation_top1 = step->validation_top1,
                                           .learning_rate = step->learning_rate,
                                           .gradient_norm = step->result.gradient_norm,
                                           .per_second = step_items(loop) / step->seconds,
                                           .unit = loop->data->unit,
                                           .state_bytes = step->state_bytes,
                                           .peak_bytes = step->peak_state_bytes,
                                           .bits = mean_bits(loop, step),
                                           .decided = step->result.decided};
    return tensorboard_write(loop->events, &shown, loop->optimizer, &loop->model->parameters);
}

static void show_step(struct run *run, const struct step *step) {
    struct progress_state state = {.step = step->number,
                                   .train_loss = step->train_loss,
                                   .validation_loss = step->validation_loss,
                                   .validation_top1 = step->validation_top1,
                                   .per_second = step_items(run->loop) / step->seconds,
                                   .unit = run->loop->data->unit,
                                   .state_bytes = (int64_t)step->state_bytes,
                                   .bits = mean_bits(run->loop, step)};
    progress_step(&run->progress, &state);
    if (step->sample) {
        progress_clear(&run->progress);
        char title[64];
        snprintf(title, sizeof(title), "--- sample after step %lld\n", (long long)step->number);
        progress_text(&run->progress, title);
        progress_text(&run->progress, step->sample);
        progress_text(&run->progress, "\n---\n");
    }
}

// A diverged run is told about at once, and ended when it stays so.
static enum app_status check_finite(struct run *run, const struct step *step) {
    if (!step->result.skipped && isfinite(step->train_loss)) {
        run->skipped_in_a_row = 0;
        return APP_OK;
    }
    progress_clear(&run->progress);
    fprintf(stderr, "step %lld: the %s is not finite%s\n", (long long)step->number,
            isfinite(step->train_loss) ? "gradient" : "loss",
            step->result.skipped ? "; the step is skipped, parameters and states stay as they were" : "");
    if (++run->skipped_in_a_row < SKIPS_TO_GIVE_UP) {
        return APP_OK;
    }
    return app_fail(APP_FAILED,
                    "The loss or its gradient was not finite for %d steps in a row; use a lower --learning-rate or "
                    "a longer --warmup.",
                    SKIPS_TO_GIVE_UP);
}

static int is_due(int64_t every, int64_t step, int64_t steps) {
    return step == steps || (every > 0 && step % every == 0);
}

static enum app_status run_step(struct run *run, struct step *step) {
    const struct loop_settings *settings = &run->loop->settings;
    enum app_status status = train_step(run, step);
    if (status != APP_OK) {
        return status;
    }
    run->step_seconds[run->recorded] = (float)step->seconds;
    run->optimizer_seconds[run->recorded++] = (float)step->optimizer_seconds;
    if (!run->stop && is_due(settings->validate_every, step->number, settings->schedule.steps)) {
        status = loop_validate(run->loop->model, run->loop->data, run->loop->ranks, &step->validation_loss,
                               &step->validation_top1);
    }
    if (status == APP_OK && !run->stop && settings->sample &&
        is_due(settings->sample_every, step->number, settings->schedule.steps)) {
        status = settings->sample(settings->sample_context, step->number, &step->sample);
    }
    if (status == APP_OK) {
        status = log_step(run->loop, step);
    }
    if (status == APP_OK && run->loop->events) {
        status = write_events(run->loop, step);
    }
    if (status == APP_OK) {
        show_step(run, step);
        status = check_finite(run, step);
    }
    const char *warning = status == APP_OK && settings->after_step
                              ? settings->after_step(settings->after_step_context, step->number)
                              : NULL;
    if (warning) {
        progress_clear(&run->progress);
        fprintf(stderr, "warning: %s\n", warning);
    }
    return status;
}

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double median_ms(float *seconds, int64_t count) {
    qsort(seconds, (size_t)count, sizeof(*seconds), compare_floats);
    return count ? 1e3 * (double)(seconds[(count - 1) / 2] + seconds[count / 2]) / 2 : NAN;
}

// Takes over what a step leaves for the outcome.
static void keep(struct loop_outcome *outcome, struct step *step) {
    outcome->steps = step->number;
    outcome->train_loss = step->train_loss;
    if (!isnan(step->validation_loss)) {
        outcome->validation_loss = step->validation_loss;
        outcome->validation_top1 = step->validation_top1;
    }
    if (step->sample) {
        free(outcome->sample);
        outcome->sample = step->sample;
    }
}

static void finish(struct run *run, struct loop_outcome *outcome) {
    const struct loop *loop = run->loop;
    progress_clear(&run->progress);
    outcome->seconds = clock_seconds() - run->progress.begin;
    outcome->signal = run->stop;
    outcome->skipped = stq_adamw_skipped_count(loop->optimizer->adamw);
    outcome->step_ms = median_ms(run->step_seconds, run->recorded);
    outcome->optimizer_ms = median_ms(run->optimizer_seconds, run->recorded);
    outcome->per_second = 1e3 * step_items(loop) / outcome->step_ms;
}

enum app_status loop_run(struct loop *loop, struct loop_outcome *outcome) {
    const struct loop_settings *settings = &loop->settings;
    const int64_t steps = settings->schedule.steps - settings->first_step;
    struct sigaction signals[2];
    struct run run = {.loop = loop,
                      .step_seconds = calloc((size_t)steps, sizeof(float)),
                      .optimizer_seconds = calloc((size_t)steps, sizeof(float))};
    *outcome = (struct loop_outcome){
        .steps = settings->first_step, .train_loss = NAN, .validation_loss = NAN, .validation_top1 = NAN};
    enum app_status status = APP_OK;
    if (!run.step_seconds || !run.optimizer_seconds) {
        status = app_fail(APP_FAILED, "There is no memory for the times of %lld steps.", (long long)steps);
    }
    catch_signals(signals);
    progress_begin(&run.progress, settings->first_step, settings->schedule.steps);
    for (int64_t number = settings->first_step + 1; status == APP_OK && !run.stop && number <= settings->schedule.steps;
         number++) {
        struct step step = {.number = number, .validation_loss = NAN, .validation_top1 = NAN};
        status = run_step(&run, &step);
        keep(outcome, &step);
    }
    finish(&run, outcome);
    release_signals(signals, run.stop);
    progress_end(&run.progress);
    free(run.step_seconds);
    free(run.optimizer_seconds);
    return status;
}
