"""Networks and every checkpoint format that is read."""
