"""A comparison in a process of its own: `python -m taskvectors.interference < request.json`.

Reads `{"files": {name: path}, "seconds", "memory_bytes": limits, "parent": process id}`; writes
`{"report": …}`, or `{"error": {"type", "message"}}` with status 1 for an error of this library or
of the system, or for too little memory. It ends after its limit of time, and with its parent.
"""

import json
import signal
import sys
from collections.abc import Mapping

from taskvectors.errors import TaskVectorError
from taskvectors.harmless import become_harmless
from taskvectors.interference.compare import compare


def main() -> int:
    """The status of the process."""
    request = json.load(sys.stdin)
    signal.alarm(int(request["seconds"]))
    become_harmless(request["parent"], request["memory_bytes"])
    answer = _answer(request["files"])
    json.dump(answer, sys.stdout, allow_nan=False, separators=(",", ":"))
    return int("error" in answer)


def _answer(files: Mapping[str, str]) -> dict[str, object]:
    try:
        return {"report": compare(files).to_json(per_layer=True)}
    except MemoryError:  # by this name also where numpy raises its own subclass
        return {"error": {"type": "MemoryError", "message": ""}}
    except (TaskVectorError, OSError) as error:
        return {"error": {"type": type(error).__name__, "message": str(error)}}


if __name__ == "__main__":
    sys.exit(main())
