"""Training one classifier: configurations, image data, models, a plain loop with checkpoints. Knows nothing of RL."""
