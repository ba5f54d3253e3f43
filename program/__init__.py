"""What this one program adds to the library of components."""
