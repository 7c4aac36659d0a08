"""What experiments decide: who gets which variant, and what follows from what was seen. Pure."""
