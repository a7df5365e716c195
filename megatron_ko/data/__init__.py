"""Text to verified, indexed tokens, and tokens to training batches. Only ``training`` needs torch."""
