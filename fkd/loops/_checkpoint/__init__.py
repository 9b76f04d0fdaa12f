"""What a run leaves on disk: checkpoints, their folder, its lock, exported students."""
