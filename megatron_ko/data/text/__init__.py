"""Documents in and out: files of every kind and format, folders, pipes, the hub."""
