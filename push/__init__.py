"""What runs on a builder."""
