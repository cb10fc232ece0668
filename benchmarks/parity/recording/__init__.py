"""Records a trace: a real training run, observed from inside."""
