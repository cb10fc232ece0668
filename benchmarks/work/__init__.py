"""What a workload costs: FLOPs, bytes, the roofline."""
