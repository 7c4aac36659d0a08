"""What the store does, in numbers: for Prometheus, and as JSON."""

from fastapi import APIRouter

router = APIRouter()
