"""Trust: are the answers of one precision worse than another's, item by item? Pure functions; docs/trust.md."""
