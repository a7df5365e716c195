"""Work over many processes that can be killed at any moment, goes on, and gives the same bytes."""
