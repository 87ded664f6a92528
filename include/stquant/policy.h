/*
 * stquant/policy.h - which tensor and which state gets how many bits: zones (STQuant, arXiv 2604.06836, figure 3),
 * rate-distortion, or fixed widths; always under a cap on the bytes of all states together.
 */
#ifndef STQUANT_POLICY_H
#define STQUANT_POLICY_H

#include <stquant/base.h>
#include <stquant/score.h>

#ifdef __cplusplus
extern "C" {
#endif

/** How widths are chosen. */
typedef enum stq_policy_kind {
    STQ_POLICY_FLOAT32 = 0,        /**< float32 states everywhere: plain AdamW */
    STQ_POLICY_FIXED = 1,          /**< one width for every first moment, one for every second moment */
    STQ_POLICY_ZONES = 2,          /**< the paper's four zones in the plane of magnitude n and complexity r */
    STQ_POLICY_RATE_DISTORTION = 3 /**< marginal gain on the convex hull of the measured distortion */
} stq_policy_kind;

/** What the cap bounds. */
typedef enum stq_cap_mode {
    STQ_CAP_PEAK = 0, /**< the bytes at every step, transitions included */
    STQ_CAP_MEAN = 1  /**< the mean over the planned steps: high early, low late (the paper's schedule) */
} stq_cap_mode;

/** Whether second moments may be shared along a dimension: one mean a row or a column instead of a value per element.
 */
typedef enum stq_shared_mode {
    STQ_SHARED_OFF = 0, /**< only where a tensor's v_bits says so */
    STQ_SHARED_AUTO = 1 /**< where v varies little along a dimension and its bits are worth more elsewhere; taken back
                           when that ends */
} stq_shared_mode;

/** Zone of a tensor in the n-r plane. */
typedef enum stq_zone {
    STQ_ZONE_EXEMPT = 0,     /**< float32 states, takes no part */
    STQ_ZONE_CRITICAL = 1,   /**< n high, r high */
    STQ_ZONE_MAGNITUDE = 2,  /**< n high, r low */
    STQ_ZONE_STRUCTURAL = 3, /**< n low, r high */
    STQ_ZONE_REDUNDANT = 4   /**< both low */
} stq_zone;

/** "exempt", "critical", "magnitude", "structural", "redundant"; static storage. */
STQ_API const char *stq_zone_name(stq_zone zone);

/** Configuration of a policy. Fill it with stq_policy_defaults() and change what differs. */
typedef struct stq_policy_config {
    size_t size;              /**< sizeof(stq_policy_config), for compatibility of later versions */
    stq_policy_kind kind;     /**< default STQ_POLICY_RATE_DISTORTION: docs/decisions/003-default-policy.md */
    double state_bits;        /**< the cap: all-in bits per state value (8 * bytes / (2 * parameters)); default 5.0 */
    uint64_t cap_bytes;       /**< the cap in bytes; 0 = from state_bits; the global model's, whatever the rank count */
    stq_cap_mode cap_mode;    /**< default STQ_CAP_PEAK */
    uint32_t fixed_m_bits;    /**< STQ_POLICY_FIXED: width of m, 2 to 8; default 4. The cap is not applied */
    uint32_t fixed_v_bits;    /**< STQ_POLICY_FIXED: width of v, 2 to 8; default 4 */
    uint32_t lowest_bits;     /**< narrowest width the policy may choose, 2 to 8; default 2 */
    uint32_t highest_bits;    /**< widest width the policy may choose, lowest_bits to 8; default 8 */
    int64_t decide_every;     /**< steps K between decisions (also at steps 1, 10 and 30); default 100 */
    int64_t planned_steps;    /**< length of the run, 0 = unknown; STQ_CAP_MEAN needs it */
    stq_shared_mode shared_v; /**< default STQ_SHARED_OFF */
    int64_t decision_delay; /**< calls of stq_adamw_step() from the step whose gradients a decision is made from to the
                                 one in which widths change, 0 to 16; a GPU then need not wait for the device. The
                                 first widths are chosen at once. Default 0 */
    double annealing;       /**< 1 = the zones' offsets shrink over the first half of the planned steps, or as gradients
                                 do where those are unknown; 0 = they stay; default 1 */
} stq_policy_config;

/** The defaults named above. */
STQ_API stq_policy_config stq_policy_defaults(void);

#ifdef __cplusplus
}
#endif

#endif
