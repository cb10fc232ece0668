"""The frozen encoder in native code: AMX and AVX-512 BF16."""
