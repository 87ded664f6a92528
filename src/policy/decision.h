/* decision.h - what one decision works on; shared by decide.c (wishes) and transition.c (moves towards them). */
#ifndef STQ_DECISION_H
#define STQ_DECISION_H

#include "policy/rules.h"

typedef struct decision {
    stq_policy *policy;
    stq_policy_tensor *tensors;
    stq_choice *choices;
    uint8_t *wishes; /* the rule's width for each choice, free of history; 0 = shared */
    uint32_t *links; /* scratch of stq_spend() */
    size_t count;    /* of choices */
    stq_steps steps;
    uint64_t taken;  /* bytes of everything else */
    int64_t budget;  /* bytes for the planes of the choices */
    int64_t reserve; /* bytes of the largest means that a second moment needs before its codes are freed */
} decision;

/* Moves every choice from its present width towards its wish: at most one bit, demotions when asked for twice in a row,
 * under the budget. Updates `asked` of the tensors and the policy's count of forced demotions. */
void stq_decision_move(decision *d);

#endif
