"""Units by the version that dealt them, on both databases."""

from outfitter.control.experiments.event import Event
from outfitter.state.catalog import Catalog
from outfitter.state.dealt import units_by_version
from outfitter.state.events import Events


def _event(unit: str, at: float, variant: str, version: int, **more: object) -> Event:
    given = {
        "experiment": "tone",
        "request_id": f"{unit}-{at}",
        "tenant": "open",
        "unit": unit,
        "variant": variant,
        "version": version,
        "at": at,
        "is_counted": True,
        "is_shadow": False,
        "status": 200,
        "error": 0,
        "latency_s": 1.0,
        "cost": 0.0,
        "first_token_s": None,
        "inter_token_s": None,
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "cached_tokens": 0,
        **more,
    }
    return Event(**given)  # type: ignore[arg-type]


def test_a_unit_counts_for_the_version_that_served_it_first(database_url: str) -> None:
    """Once, however many requests it has, and not for what does not count."""
    catalog = Catalog(database_url)
    events = [
        _event("a", 1.0, "control", 2),
        _event("a", 2.0, "warm", 3),  # its variant changed: the first one counts
        _event("b", 1.5, "warm", 2),
        _event("b", 1.5, "warm", 2, request_id="b-again"),
        _event("c", 3.0, "warm", 3),
        _event("d", 0.5, "control", 2, is_counted=False),
        _event("d", 3.5, "control", 3),
        _event("e", 3.5, "warm", 3, is_shadow=True),
    ]
    Events(catalog.database).add(events)
    with catalog.database.reading() as session:
        found = units_by_version(session, "tone")
        assert units_by_version(session, "other") == {}
    assert found == {2: {"control": 1, "warm": 1}, 3: {"control": 1, "warm": 1}}
    catalog.close()
