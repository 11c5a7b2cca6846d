"""What a training step minimises: methods, losses, and where soft targets come from."""
