"""What the plugins answer at the engine's boundary, official and drop-in alike."""
