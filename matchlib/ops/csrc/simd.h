// Compiles a function for several instruction sets; the loader picks the best one of the running processor.
// So the artefact needs no -march=native and may be cached or copied to another machine.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__x86_64__) && defined(__linux__)
#define MATCHLIB_X86 1  // functions may be compiled for x86-64-v3 and -v4, and the processor asked which it is
#define MATCHLIB_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MATCHLIB_X86 0
#define MATCHLIB_CLONES
#endif
#define MATCHLIB_INLINE __attribute__((always_inline)) inline
