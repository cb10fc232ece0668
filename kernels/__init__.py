"""Pure numerics on tensors: the packed encoder and its float64 judge. No devices, no configuration, no files."""
