"""What is computed: the encoder, the head, adapters, and the whole model."""
