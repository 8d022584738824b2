"""`python -m bench.gpu COMMAND`: the kit's steps, in their order."""
