"""Where the head's inputs come from: a frozen encoder's features, cached or streamed."""
