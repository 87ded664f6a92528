/*
 * select.c - which factors tell most about the error of coded states: greedy selection, its submodularity ratio and the
 * optimum. docs/theory.md has the guarantee and its proof.
 */
#include <math.h>
#include <stdlib.h>

#include "common/error.h"
#include <stquant/score.h>

/* Added to the variance of every factor, so that equal factors do not make the matrix singular: the second one of a
 * pair says (nearly) nothing new. */
static const double ridge = 1e-6;

enum { MOST = STQ_MOST_FACTORS + 1 };

/* Rank correlations of the factors (0 .. count - 1) and the target (count), and F of the sets asked for so far. */
typedef struct correlations {
    double matrix[MOST][MOST];
    size_t count;
    double *values; /* of 2^count sets; NaN = not asked for yet */
} correlations;

/* ---- Normal scores ---- */

typedef struct ranked {
    double value;
    size_t index;
} ranked;

static int compare_ranked(const void *a, const void *b) {
    double x = ((const ranked *)a)->value, y = ((const ranked *)b)->value;
    return (x > y) - (x < y);
}

/* The x below which a standard normal variable lies with probability p: Newton's method on the distribution function.
 */
static double normal_quantile(double p) {
    double x = 0;
    for (int iteration = 0; iteration < 60; iteration++) {
        double density = exp(-x * x / 2) / 2.50662827463100050242;
        double step = (erfc(-x / 1.41421356237309504880) / 2 - p) / density;
        step = step > 1 ? 1 : step < -1 ? -1 : step;
        x -= step;
        if (fabs(step) < 1e-14)
            break;
    }
    return x;
}

/* Column of normal scores of mean 0 and variance 1, or zeros where nothing varies. */
static void to_scores(double *scores, ranked *order, const double *values, size_t stride, size_t samples) {
    for (size_t i = 0; i < samples; i++)
        order[i] = (ranked){values[i * stride], i};
    qsort(order, samples, sizeof *order, compare_ranked);
    double sum = 0, squares = 0;
    for (size_t first = 0; first < samples;) {
        size_t end = first + 1;
        while (end < samples && order[end].value == order[first].value)
            end++;
        double score = normal_quantile(((double)first + (double)end) / 2 / (double)samples);
        for (size_t i = first; i < end; i++)
            scores[order[i].index] = score;
        sum += score * (double)(end - first);
        squares += score * score * (double)(end - first);
        first = end;
    }
    double mean = sum / (double)samples, variance = squares / (double)samples - mean * mean;
    double scale = variance > 1e-12 ? 1 / sqrt(variance) : 0;
    for (size_t i = 0; i < samples; i++)
        scores[i] = (scores[i] - mean) * scale;
}

static void correlate(correlations *c, const double *scores, size_t samples) {
    for (size_t a = 0; a <= c->count; a++)
        for (size_t b = 0; b <= a; b++) {
            double sum = 0;
            for (size_t i = 0; i < samples; i++)
                sum += scores[a * samples + i] * scores[b * samples + i];
            c->matrix[a][b] = c->matrix[b][a] = sum / (double)samples;
        }
}

/* ---- F ---- */

/* var(Y | X_S) / var(Y): the last pivot of a Cholesky factorisation of the correlations of S and then Y. */
static double conditional_variance(const correlations *c, uint32_t set) {
    size_t index[MOST], size = 0;
    double lower[MOST][MOST];
    for (size_t i = 0; i < c->count; i++)
        if (set >> i & 1)
            index[size++] = i;
    index[size++] = c->count;
    double pivot = 1;
    for (size_t a = 0; a < size; a++) {
        for (size_t b = 0; b <= a; b++) {
            double sum = c->matrix[index[a]][index[b]];
            if (a == b && a + 1 < size)
                sum += ridge;
            for (size_t k = 0; k < b; k++)
                sum -= lower[a][k] * lower[b][k];
            if (a == b) {
                pivot = sum > ridge * ridge ? sum : ridge * ridge;
                lower[a][a] = sqrt(pivot);
            } else {
                lower[a][b] = sum / lower[b][b];
            }
        }
    }
    return pivot;
}

static double value_of(correlations *c, uint32_t set) {
    if (isnan(c->values[set])) {
        double whole = c->matrix[c->count][c->count];
        c->values[set] = whole > 0 ? 0.5 * log(whole / conditional_variance(c, set)) : 0;
    }
    return c->values[set];
}

/* ---- Selection ---- */

static size_t size_of(uint32_t set) {
    size_t size = 0;
    for (; set != 0; set &= set - 1)
        size++;
    return size;
}

static void select_greedily(stq_selection *s, correlations *c, size_t k) {
    s->selected = 0;
    for (size_t taken = 0; taken < k; taken++) {
        uint32_t choice = 0;
        double most = -INFINITY;
        for (uint32_t i = 0; i < c->count; i++) {
            if (s->selected >> i & 1)
                continue;
            double value = value_of(c, s->selected | 1u << i);
            if (value > most) {
                most = value;
                choice = i;
            }
        }
        s->selected |= 1u << choice;
        s->order[taken] = choice;
    }
    s->value = value_of(c, s->selected);
}

static void select_by_trying(stq_selection *s, correlations *c, size_t k) {
    s->best = s->selected;
    s->best_value = s->value;
    for (uint32_t set = 0; set < 1u << c->count; set++)
        if (size_of(set) == k && value_of(c, set) > s->best_value) {
            s->best = set;
            s->best_value = value_of(c, set);
        }
}

/* How much less the parts of `more` add to `set` one by one than together; infinite where together they add nothing. */
static double ratio_of(correlations *c, uint32_t set, uint32_t more) {
    double base = value_of(c, set), together = value_of(c, set | more) - base, alone = 0;
    if (together <= 1e-12)
        return INFINITY;
    for (uint32_t i = 0; i < c->count; i++)
        if (more >> i & 1)
            alone += value_of(c, set | 1u << i) - base;
    return alone / together;
}

static double submodularity_ratio(const stq_selection *s, correlations *c, size_t k) {
    double gamma = 1;
    for (uint32_t set = s->selected;; set = (set - 1) & s->selected) {
        for (uint32_t more = 1; more < 1u << c->count; more++)
            if ((more & set) == 0 && size_of(more) <= k) {
                double ratio = ratio_of(c, set, more);
                gamma = ratio < gamma ? ratio : gamma;
            }
        if (set == 0)
            break;
    }
    return gamma > 0 ? gamma : 0;
}

/* ---- Calls ---- */

static stq_status check_samples(const double *factors, const double *target, size_t samples, size_t factor_count) {
    if (factors == NULL || target == NULL)
        return stq_error(STQ_INVALID_ARGUMENT, "A selection needs factors and a target.");
    if (factor_count < 1 || factor_count > STQ_MOST_FACTORS)
        return stq_error(STQ_INVALID_ARGUMENT, "A selection among %zu factors; use 1 to %d.", factor_count,
                         STQ_MOST_FACTORS);
    if (samples < factor_count + 2)
        return stq_error(STQ_INVALID_ARGUMENT, "%zu samples are too few for %zu factors; use %zu or more.", samples,
                         factor_count, factor_count + 2);
    for (size_t i = 0; i < samples; i++) {
        if (!isfinite(target[i]))
            return stq_error(STQ_INVALID_ARGUMENT, "The target of sample %zu is not finite.", i);
        for (size_t j = 0; j < factor_count; j++)
            if (!isfinite(factors[i * factor_count + j]))
                return stq_error(STQ_INVALID_ARGUMENT, "Factor %zu of sample %zu is not finite.", j, i);
    }
    return STQ_OK;
}

static void release(correlations *c) {
    free(c->values);
    free(c);
}

static stq_status open_correlations(correlations **result, const double *factors, const double *target, size_t samples,
                                    size_t factor_count) {
    STQ_CHECK(check_samples(factors, target, samples, factor_count));
    correlations *c = calloc(1, sizeof *c);
    double *scores = malloc((factor_count + 1) * samples * sizeof *scores);
    ranked *order = malloc(samples * sizeof *order);
    if (c != NULL)
        c->values = malloc(((size_t)1 << factor_count) * sizeof *c->values);
    if (c == NULL || c->values == NULL || scores == NULL || order == NULL) {
        free(scores);
        free(order);
        if (c != NULL)
            release(c);
        return stq_error(STQ_OUT_OF_MEMORY, "No memory to rank %zu samples of %zu factors.", samples, factor_count);
    }
    c->count = factor_count;
    for (size_t set = 0; set < (size_t)1 << factor_count; set++)
        c->values[set] = NAN;
    for (size_t j = 0; j < factor_count; j++)
        to_scores(scores + j * samples, order, factors + j, factor_count, samples);
    to_scores(scores + factor_count * samples, order, target, 1, samples);
    correlate(c, scores, samples);
    free(scores);
    free(order);
    *result = c;
    return STQ_OK;
}

stq_status stq_select_factors(stq_selection *selection, const double *factors, const double *target, size_t samples,
                              size_t factor_count, size_t k) {
    if (k < 1 || k > STQ_MOST_SELECTED || k > factor_count)
        return stq_error(STQ_INVALID_ARGUMENT,
                         "A selection of %zu out of %zu factors; use 1 to %d, and no more than all.", k, factor_count,
                         STQ_MOST_SELECTED);
    correlations *c;
    STQ_CHECK(open_correlations(&c, factors, target, samples, factor_count));
    stq_selection s = {0};
    select_greedily(&s, c, k);
    select_by_trying(&s, c, k);
    s.gamma = submodularity_ratio(&s, c, k);
    s.bound = 1 - exp(-s.gamma);
    release(c);
    *selection = s;
    return STQ_OK;
}

stq_status stq_factor_value(double *value, uint32_t set, const double *factors, const double *target, size_t samples,
                            size_t factor_count) {
    if (factor_count <= STQ_MOST_FACTORS && set >> factor_count != 0)
        return stq_error(STQ_INVALID_ARGUMENT, "The set 0x%x names factors beyond the %zu there are.", set,
                         factor_count);
    correlations *c;
    STQ_CHECK(open_correlations(&c, factors, target, samples, factor_count));
    *value = value_of(c, set);
    release(c);
    return STQ_OK;
}
