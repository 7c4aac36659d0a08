"""The science of the demonstration: what mixing, cutting, negating and adding task vectors does."""
