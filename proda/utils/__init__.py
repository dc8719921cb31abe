"""What knows nothing of the method: files that are written atomically."""
