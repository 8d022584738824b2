"""The compose project of docker/: generated from the recipes, and written out for those without a checkout."""
