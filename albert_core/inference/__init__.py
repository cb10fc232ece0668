"""What a trained run is used for: predictions and export."""
