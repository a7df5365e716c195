"""Work over many processes. It can be killed at any moment, goes on when restarted, and gives the same bytes."""
