"""What each key used: sums by day, key, model and tenant, as JSON or CSV."""

import asyncio
import csv
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse, Response

from outfitter.control.principal import Principal, Scope
from outfitter.deps import GatewayDep, PrincipalDep
from outfitter.errors import ApiError
from outfitter.schemas import check_known, only
from outfitter.state.usage import COUNTS, GROUPS, MAX_ROWS, UsageQuery, UsageTable

router = APIRouter(prefix="/v1/usage")

DEFAULT_DAYS = 30
_PARAMETERS = ("from", "to", "group_by", "format")
_FORMATS = ("json", "csv")
_STEERING = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet takes for a formula at the start of a cell."""


@router.get("")
async def usage(request: Request, gateway: GatewayDep, principal: PrincipalDep) -> Response:
    """Sums of all tenants for the operator, of their own for others; seconds old at most."""
    params = request.query_params
    check_known(params.keys(), _PARAMETERS, "query parameter")
    query = usage_query(params, principal)
    is_csv = wants_csv(params, request.headers.get("accept", ""))
    table = UsageTable(gateway.vectors.catalog.database)
    rows = await asyncio.to_thread(table.find, query)
    if len(rows) > MAX_ROWS:
        message = f"more than {MAX_ROWS} rows: narrow from and to, or group by less"
        raise ApiError(400, message, "too_many_rows", "group_by")
    if is_csv:
        headers = {"content-disposition": 'attachment; filename="usage.csv"'}
        text = as_csv((*query.group_by, *COUNTS), rows)
        return Response(text, media_type="text/csv", headers=headers)
    told = {"from": query.first, "to": query.last, "group_by": list(query.group_by)}
    return JSONResponse({"object": "usage", **told, "data": rows})


def usage_query(params: QueryParams, principal: Principal) -> UsageQuery:
    """What is asked for, and may be seen; raises ApiError (400)."""
    last = _day(params, "to") or datetime.now(UTC).date()
    first = _day(params, "from") or max(last, _EARLIEST) - timedelta(DEFAULT_DAYS - 1)
    if first > last:
        message = f"from must not be after to: {first} is after {last}"
        raise ApiError(400, message, "invalid_parameter", "from")
    tenant = None if principal.may(Scope.OPERATE) else principal.tenant
    return UsageQuery(first.isoformat(), last.isoformat(), _group_by(params), tenant)


_EARLIEST = date(1970, 1, 31)


def as_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Comma-separated values, with a line of headings; no cell is a formula."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([cell(row[column]) for column in columns] for row in rows)
    return text.getvalue()


def cell(value: object) -> object:
    """What stands in a CSV: no formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_STEERING) else value


def _day(params: QueryParams, name: str) -> date | None:
    text = only(params, name)
    if text is None:
        return None
    try:
        if len(text) == len("2026-01-31"):
            return date.fromisoformat(text)
    except ValueError:
        pass
    message = f"{name} must be a day such as 2026-01-31, not {text[:40]!r}"
    raise ApiError(400, message, "invalid_parameter", name)


def _group_by(params: QueryParams) -> tuple[str, ...]:
    names = tuple((only(params, "group_by") or "day").split(","))
    for name in names:
        if name not in GROUPS or names.count(name) > 1:
            message = f"group_by must be some of {', '.join(GROUPS)}, each once, not {name[:80]!r}"
            raise ApiError(400, message, "invalid_parameter", "group_by")
    return names


def wants_csv(params: QueryParams, accept: str) -> bool:
    """By `format=`, else by the header `accept`; raises ApiError (400)."""
    asked = only(params, "format")
    if asked is None:
        kinds = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
        return "text/csv" in kinds
    if asked not in _FORMATS:
        message = f"unknown format {asked[:80]!r}; choose {', '.join(_FORMATS)}"
        raise ApiError(400, message, "invalid_parameter", "format")
    return asked == "csv"
