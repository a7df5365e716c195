"""Remove duplicates, exact and near, across all sources; and documents that contain evaluation items."""
