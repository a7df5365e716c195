"""Text to verified, indexed tokens, and tokens to training batches. Only pretrain.py may import torch."""
