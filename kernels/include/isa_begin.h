// Compiles the functions from here to isa_end.h for the instruction sets that ISOTRAIN_ISA names:
//
//     #define ISOTRAIN_ISA "avx2,fma"
//     #include "../../include/isa_begin.h"
//     ...
//     #include "../../include/isa_end.h"
//
// Standard headers and the intrinsics come before it, so that no inline function of theirs is compiled for a newer
// processor and then shared, by the linker, with code that runs on older ones.
#ifndef ISOTRAIN_ISA
#error "define ISOTRAIN_ISA, as GCC's attribute target takes it, before isa_begin.h"
#endif

// Two steps, so that ISOTRAIN_ISA is expanded before it becomes part of a string.
#define ISOTRAIN_PRAGMA_TEXT(text) _Pragma(#text)
#define ISOTRAIN_PRAGMA(text) ISOTRAIN_PRAGMA_TEXT(text)

#if defined(__clang__)
ISOTRAIN_PRAGMA(clang attribute push(__attribute__((target(ISOTRAIN_ISA))), apply_to = function))
#else
_Pragma("GCC push_options")
ISOTRAIN_PRAGMA(GCC target(ISOTRAIN_ISA))
#endif
