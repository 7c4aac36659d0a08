"""The products that add a task vector to a layer's output. `reference` is the truth."""
