"""Where a target stops being better than the reference, metric by metric. docs/crossovers.md says how and how well."""
