"""The machine around the device: caches, memory, energy."""
