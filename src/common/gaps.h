/* gaps.h - which bytes of a range nobody holds: a list of gaps, in order of their places, no two of which touch. */
#ifndef STQ_GAPS_H
#define STQ_GAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes begin to end - 1 of the range. */
typedef struct stq_gap {
    uint64_t begin, end;
} stq_gap;

typedef struct stq_gaps {
    stq_gap *list; /* owned */
    size_t count;
    size_t capacity; /* enough for whatever is given back, which needs no memory therefore */
    size_t taken;
} stq_gaps;

/* One gap from 0 to `bytes` (1 or more); false without memory, with nothing to close. */
bool stq_gaps_open(stq_gaps *gaps, uint64_t bytes);

void stq_gaps_close(stq_gaps *gaps);

/* Takes `bytes` (1 or more) from the first gap that has them; *begin is their place. False if none has, or without
 * memory for the list, with nothing changed. */
bool stq_gaps_take(stq_gaps *gaps, uint64_t bytes, uint64_t *begin);

/* Gives back what was taken. */
void stq_gaps_give(stq_gaps *gaps, uint64_t begin, uint64_t bytes);

/* Index of the first gap that ends behind `place`; `count` if none does. */
size_t stq_gaps_find(const stq_gaps *gaps, uint64_t place);

#endif
