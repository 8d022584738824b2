"""Cost models fitted to target and reference together, and compared. docs/cost-models.md says what they can tell."""
