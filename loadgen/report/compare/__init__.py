"""`loadgen compare` in a terminal and as compare.html."""
