"""Cost models fitted to a target and the reference together, and compared. docs/models.md says what they can tell."""
