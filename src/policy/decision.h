/* decision.h - what one decision works on; shared by decide.c (wishes) and transition.c (moves towards them). */
#ifndef STQ_DECISION_H
#define STQ_DECISION_H

#include "policy/rules.h"

typedef struct decision {
    stq_policy *policy;
    stq_policy_tensor *tensors;
    stq_choices choices;
    void *memory;    /* of the arrays of the choices and of the two lists of indices that follow */
    uint32_t *links; /* scratch of stq_spend() */
    uint32_t *list;  /* scratch: some of the choices */
    stq_steps steps;
    bool sharing;       /* some second moment may be shared */
    bool without_codes; /* some state has no coded width now: it is shared, or new */
    uint64_t taken;     /* bytes of everything else */
    int64_t budget;     /* bytes for the planes of the choices */
    int64_t reserve;    /* bytes of the largest means that a second moment needs before its codes are freed */
    int64_t present;    /* bytes of all choices at their present widths */
    int64_t chosen;     /* and at `bits` */
    int64_t bit; /* bytes of one bit plane of all choices, and of the base planes of 2 and 3 and of 4 to 8 bits */
    int64_t pair;
    int64_t nibble;
} decision;

/* Moves every choice from its present width towards its wish: at most one bit, demotions when asked for twice in a row,
 * under the budget. Updates `asked` of the tensors and the policy's count of forced demotions. */
void stq_decision_move(decision *d);

#endif
