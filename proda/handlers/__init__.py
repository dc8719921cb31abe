"""What happens between iterations: everything that listens to engines."""
