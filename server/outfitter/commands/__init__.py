"""The commands of `outfitter`, one file per noun."""
