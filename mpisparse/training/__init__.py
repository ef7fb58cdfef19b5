"""What `mpisparse train` runs: data sets, models and the loop around a gradient exchange."""
