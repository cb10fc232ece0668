"""What training loops share on any device: the loss scale of float16, and a session for a loop of one's own."""
