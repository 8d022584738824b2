"""Which cells to measure next, so that B* is found with few starts of servers. docs/find.md derives it."""
