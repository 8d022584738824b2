"""Several runs beside each other: one table, N*, published figures, other tools' results. docs/compare.md says how."""
