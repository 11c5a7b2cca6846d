"""A run: its folder, checkpoints and environment, and how its processes stop and end."""
