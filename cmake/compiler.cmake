# Flags for the code of this repository. Users of the installed library inherit none of them.

# Warnings and sanitizers, for every target.
add_library(stquant-flags INTERFACE)
set(stquant_warnings -Wall -Wextra -Wshadow)
set(stquant_c_warnings -Wstrict-prototypes -Wmissing-prototypes)
target_compile_options(stquant-flags INTERFACE
  $<$<COMPILE_LANGUAGE:C>:${stquant_warnings};${stquant_c_warnings}>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
# clang tells where it could not vectorise a loop that asks for it; that is no defect of the loop.
target_compile_options(stquant-flags INTERFACE $<$<COMPILE_LANG_AND_ID:C,Clang>:-Wno-pass-failed>)
if(STQUANT_WERROR)
  target_compile_options(stquant-flags INTERFACE
    $<$<COMPILE_LANGUAGE:C>:-Werror>
    $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Werror>)
endif()

if(STQUANT_SANITIZE)
  target_compile_options(stquant-flags INTERFACE
    $<$<COMPILE_LANGUAGE:C>:-fsanitize=${STQUANT_SANITIZE};-fno-sanitize-recover=all;-fno-omit-frame-pointer;-g>)
  target_link_options(stquant-flags INTERFACE -fsanitize=${STQUANT_SANITIZE})
endif()

# Arithmetic of the library. Codes, scales and parameters are the same bytes on every processor,
# so the compiler may neither contract a * b + c into a fused operation of its own choosing nor
# reorder anything; where fusion is wanted the source says fmaf. No -m flags: kernels for newer
# instruction sets carry function attributes and are chosen at run time.
add_library(stquant-arithmetic INTERFACE)
target_compile_options(stquant-arithmetic INTERFACE
  $<$<COMPILE_LANGUAGE:C>:-ffp-contract=off;-fno-math-errno;$<$<NOT:$<CONFIG:Debug>>:-O3>>
  $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;--ftz=false;--prec-div=true;--prec-sqrt=true;-Xcompiler=-ffp-contract=off>)
