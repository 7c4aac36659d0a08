"""Task vectors from and to other places: folders, hubs, buckets, registries, other gateways."""
