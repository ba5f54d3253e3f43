"""What a stack tells people and machines."""
