/*
 * step_runner.h - runs the cases of constants/step_cases.h through a table of kernels, which is called in a hostile
 * floating-point mode that it must not take over. No test library: tests/arm uses it too.
 */
#ifndef STEP_RUNNER_H
#define STEP_RUNNER_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "constants/step_cases.h"
#include "hostile_mode.h"
#include "quant/kernels.h"

/* Digests after these steps: the first ones tell where a difference begins. */
static const uint32_t digest_steps[] = {1, 20, STEP_CASE_STEPS};
enum { DIGESTS = sizeof digest_steps / sizeof digest_steps[0], SENTINEL = 64 };

/* One state's memory: room for every width, with sentinels after each plane. */
typedef struct state_room {
    uint8_t *planes[7]; /* nibbles, pairs, four bit planes, floats */
    uint16_t *scales;
} state_room;

static size_t room_bytes(int plane) {
    static const uint32_t widths[] = {4, 2, 8, 8, 8, 8, STQ_BITS_FLOAT32};
    return (size_t)stq_plane_bytes(STEP_CASE_COUNT, widths[plane], plane < 2 || plane == 6 ? 0 : (uint32_t)plane - 1);
}

static void room_open(state_room *room) {
    for (int i = 0; i < 7; i++) {
        room->planes[i] = malloc(room_bytes(i) + SENTINEL);
        memset(room->planes[i], 0xa5, room_bytes(i) + SENTINEL);
    }
    room->scales = malloc(STEP_CASE_BLOCKS * sizeof(uint16_t) + SENTINEL);
    memset(room->scales, 0xa5, STEP_CASE_BLOCKS * sizeof(uint16_t) + SENTINEL);
}

static bool sentinel_stands(const void *begin) {
    for (int i = 0; i < SENTINEL; i++)
        if (((const uint8_t *)begin)[i] != 0xa5)
            return false;
    return true;
}

static bool room_close(state_room *room) {
    bool stands = sentinel_stands(room->scales + STEP_CASE_BLOCKS);
    for (int i = 0; i < 7; i++) {
        stands = stands && sentinel_stands(room->planes[i] + room_bytes(i));
        free(room->planes[i]);
    }
    free(room->scales);
    return stands;
}

/* The planes of a width in that memory: bit planes keep their places, as the state store has it. */
static stq_planes room_planes(const state_room *room, uint32_t bits) {
    stq_planes planes = {.bits = bits};
    if (bits == 0)
        return planes;
    planes.base = room->planes[bits == STQ_BITS_FLOAT32 ? 6 : bits < 4];
    if (bits == STQ_BITS_FLOAT32)
        return planes;
    planes.scales = room->scales;
    for (uint32_t k = 1; k < stq_plane_count(bits); k++)
        planes.bit[k - 1] = room->planes[1 + k];
    return planes;
}

static uint64_t digest_planes(uint64_t digest, const stq_planes *planes) {
    for (uint32_t k = 0; k < stq_plane_count(planes->bits); k++)
        digest = step_case_digest(digest, k == 0 ? planes->base : planes->bit[k - 1],
                                  stq_plane_bytes(STEP_CASE_COUNT, planes->bits, k));
    if (planes->bits != STQ_BITS_FLOAT32)
        digest = step_case_digest(digest, planes->scales, STEP_CASE_BLOCKS * sizeof(uint16_t));
    return digest;
}

/* Arrays for parameters and gradients that begin one element after an aligned address. */
typedef struct arrays {
    uint8_t *parameter_room, *gradient_room;
    void *parameter, *gradient;
    size_t parameter_bytes;
} arrays;

static void arrays_open(arrays *a, const step_case *which, uint32_t seed) {
    size_t parameter_size = stq_dtype_size(which->parameter_type), gradient_size = stq_dtype_size(which->gradient_type);
    a->parameter_bytes = STEP_CASE_COUNT * parameter_size;
    a->parameter_room = malloc(parameter_size + a->parameter_bytes + SENTINEL);
    a->gradient_room = malloc(gradient_size + STEP_CASE_COUNT * gradient_size);
    a->parameter = a->parameter_room + parameter_size;
    a->gradient = a->gradient_room + gradient_size;
    memset(a->parameter_room, 0xa5, parameter_size + a->parameter_bytes + SENTINEL);
    for (uint32_t i = 0; i < STEP_CASE_COUNT; i++)
        step_case_store(a->parameter, which->parameter_type, i, step_case_parameter(seed, i));
}

static bool arrays_close(arrays *a) {
    bool stands = sentinel_stands((uint8_t *)a->parameter + a->parameter_bytes);
    free(a->parameter_room);
    free(a->gradient_room);
    return stands;
}

/* Runs a case and leaves its digests. The blocks go to the kernels in two calls, as to two
 * threads. Returns false if something was written past an array. */
static bool step_case_run(const stq_kernels *kernels, const step_case *which, uint32_t seed,
                          uint64_t digests[DIGESTS]) {
    arrays a;
    state_room m, v;
    arrays_open(&a, which, seed);
    room_open(&m);
    room_open(&v);
    uint32_t m_bits = which->m_bits, v_bits = which->v_bits, done = 0;
    stq_item item = {.parameter = a.parameter,
                     .gradient = a.gradient,
                     .count = STEP_CASE_COUNT,
                     .first_block = STEP_CASE_FIRST_BLOCK,
                     .tensor = 17,
                     .parameter_type = which->parameter_type,
                     .gradient_type = which->gradient_type};
    for (uint32_t t = 1; t <= STEP_CASE_STEPS; t++) {
        for (uint32_t i = 0; i < STEP_CASE_COUNT; i++)
            step_case_store(a.gradient, which->gradient_type, i, step_case_gradient(seed, t, i));
        item.m_in = room_planes(&m, t == 1 ? 0 : m_bits);
        item.v_in = room_planes(&v, t == 1 ? 0 : v_bits);
        step_case_move(which, t, &m_bits, &v_bits);
        item.m_out = room_planes(&m, m_bits);
        item.v_out = room_planes(&v, v_bits);
        stq_coefficients coefficients = step_case_coefficients(which, t);
        uint64_t mode = hostile_mode();
        kernels->step(&item, &coefficients, 0, STEP_CASE_BLOCKS / 3);
        kernels->step(&item, &coefficients, STEP_CASE_BLOCKS / 3, STEP_CASE_BLOCKS);
        stq_float_mode_restore(mode);
        if (t == digest_steps[done]) {
            digests[done] = digest_planes(digest_planes(STEP_CASE_DIGEST, &item.m_out), &item.v_out);
            digests[done] = step_case_digest(digests[done], a.parameter, a.parameter_bytes);
            done++;
        }
    }
    bool stands = arrays_close(&a);
    stands = room_close(&m) && stands;
    return room_close(&v) && stands;
}

static uint32_t case_seed(uint32_t index) { return 0x5eed0000u + index; }

typedef struct step_row {
    char name[64];
    unsigned long long digests[DIGESTS];
} step_row;

/* Reads the table below the folder of the sources; false with a sentence on stderr if it is not complete. */
static inline bool step_rows_read(step_row *rows, const char *source) {
    char path[4096], line[256];
    snprintf(path, sizeof path, "%s/tests/constants/step_checksums.txt", source);
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        fprintf(stderr, "%s cannot be read; name the folder of the sources\n", path);
        return false;
    }
    uint32_t count = 0;
    while (count < STEP_CASE_TOTAL && fgets(line, sizeof line, file) != NULL)
        if (line[0] != '#' && sscanf(line, "%63s %llx %llx %llx", rows[count].name, &rows[count].digests[0],
                                     &rows[count].digests[1], &rows[count].digests[2]) == 4)
            count++;
    fclose(file);
    if (count != STEP_CASE_TOTAL)
        fprintf(stderr, "%s has %u cases of %d; make it again with test_step_checksums --generate\n", path, count,
                STEP_CASE_TOTAL);
    return count == STEP_CASE_TOTAL;
}

/* Runs case `index` and compares; false with a sentence on stderr for what differs. */
static inline bool step_case_compare(const stq_kernels *kernels, const step_row *rows, uint32_t index) {
    step_case which = step_case_at(index);
    uint64_t digests[DIGESTS] = {0};
    bool same = step_case_run(kernels, &which, case_seed(index), digests);
    if (!same)
        fprintf(stderr, "%s: %s writes past the end of an array\n", kernels->name, which.name);
    if (strcmp(which.name, rows[index].name) != 0) {
        fprintf(stderr, "the table has %s where %s belongs\n", rows[index].name, which.name);
        return false;
    }
    for (int k = 0; k < DIGESTS; k++)
        if (digests[k] != rows[index].digests[k]) {
            fprintf(stderr, "%s: %s (seed %u) differs after step %u: %016llx, not %016llx\n", kernels->name, which.name,
                    case_seed(index), digest_steps[k], (unsigned long long)digests[k], rows[index].digests[k]);
            return false;
        }
    return same;
}

#endif
