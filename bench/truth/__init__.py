"""The truth bench: what clients say of a server whose timing is known."""
