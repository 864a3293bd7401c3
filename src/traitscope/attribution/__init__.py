"""Who wrote a trait at a token: blocks, heads with the tokens that they read, neurons."""
