"""Which kernels an engine uses, and what is refused."""

import pytest

from taskvectors.errors import UnsupportedEngine
from taskvectors.kernel_choice import chosen_kernels


@pytest.mark.parametrize(
    ("asked", "device", "chosen"),
    [
        ("auto", "cpu", "cpu"),
        ("auto", "cuda", "torch"),
        ("auto", "xpu", "torch"),
        ("torch", "cpu", "torch"),
        ("triton", "cuda", "triton"),
    ],
)
def test_choice(asked: str, device: str, chosen: str) -> None:
    """What was asked for, or what is known to be right on the device."""
    assert chosen_kernels(asked, device) == chosen


def test_triton_on_a_cpu_is_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, unless Triton interprets."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UnsupportedEngine, match="TRITON_INTERPRET=1"):
        chosen_kernels("triton", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert chosen_kernels("triton", "cpu") == "triton"


def test_compiled_kernels_need_a_cpu() -> None:
    """A CUDA tensor has no address that they could read."""
    with pytest.raises(UnsupportedEngine, match="need a CPU, not cuda"):
        chosen_kernels("cpu", "cuda")
