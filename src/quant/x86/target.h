/*
 * target.h - lets one file use an instruction set without compiler flags: TARGET_BEGIN gives every function that
 * follows a target attribute, TARGET_END stops that. Include every header that is not for the instruction set alone
 * before.
 */
#ifndef STQ_TARGET_H
#define STQ_TARGET_H

#define STQ_PRAGMA(text) _Pragma(#text)

#ifdef __clang__
#define STQ_TARGET_BEGIN(features) \
    STQ_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define STQ_TARGET_END STQ_PRAGMA(clang attribute pop)
#else
#define STQ_TARGET_BEGIN(features) STQ_PRAGMA(GCC push_options) STQ_PRAGMA(GCC target(features))
#define STQ_TARGET_END STQ_PRAGMA(GCC pop_options)
#endif

#endif
