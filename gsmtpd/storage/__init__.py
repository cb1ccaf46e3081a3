"""Where is mail kept? One small interface, `Store`, and the group commit in front of it."""
