"""What a run did, from its metric store alone: one page, key figures, pictures."""
