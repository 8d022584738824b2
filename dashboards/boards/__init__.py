"""The four dashboards as plain dictionaries; dashboards/generate.py writes them as JSON."""
