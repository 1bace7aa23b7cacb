"""How a training is watched: progress lines, metrics, curves, reports. Rank 0 writes."""
