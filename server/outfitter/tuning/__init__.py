"""The search for the weights of a loadout, on a live gateway."""
