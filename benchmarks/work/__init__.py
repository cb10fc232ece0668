"""What a workload costs in FLOPs and bytes."""
