"""What training loops share on any device: loss scale of float16, batch normalisation, a session for one's own loop."""
