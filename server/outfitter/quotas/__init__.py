"""Quotas: what a tenant used is counted, and requests beyond its limits wait or are refused."""
