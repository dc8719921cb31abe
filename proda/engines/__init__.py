"""What one iteration does: step functions made into Ignite Engines."""
