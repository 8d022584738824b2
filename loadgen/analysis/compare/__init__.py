"""Several runs side by side: one table, N*, published figures, other tools' results. docs/compare.md says how."""
