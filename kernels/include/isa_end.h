// Ends what isa_begin.h began.
#if defined(__clang__)
_Pragma("clang attribute pop")
#else
_Pragma("GCC pop_options")
#endif

#undef ISOTRAIN_PRAGMA
#undef ISOTRAIN_PRAGMA_TEXT
#undef ISOTRAIN_ISA
