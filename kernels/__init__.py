"""Pure numerics on tensors: the packed encoder and its float64 reference. No devices, no configuration, no files."""
