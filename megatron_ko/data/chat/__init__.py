"""Conversations and preferences to indexed tokens, each token with what is trained on it."""
