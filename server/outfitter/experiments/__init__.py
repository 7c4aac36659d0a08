"""Experiments as they run: looked up, recorded, analysed and steered."""
