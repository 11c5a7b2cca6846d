"""A run: its folder, checkpoints and surroundings, and how its processes stop and end."""
