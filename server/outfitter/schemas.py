"""The objects of the gateway's own routes."""

from outfitter.vectors import Listing


def describe(listing: Listing) -> dict[str, object]:
    """A task vector, as the API shows it."""
    summary = listing.summary
    return {
        "id": f"sha256:{listing.digest}",
        "object": "task_vector",
        "name": listing.name,
        "version": listing.version,
        "digest": f"sha256:{listing.digest}",
        "bytes": listing.size,
        "base": {"name": summary.base_name, "fingerprint": summary.base_fingerprint},
        "parameters": summary.parameters,
        "nnz": summary.nnz,
        "density": summary.density,
        "created_at": listing.created,
    }
