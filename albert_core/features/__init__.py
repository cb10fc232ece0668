"""The inputs of the head: a frozen encoder's features, cached or streamed."""
