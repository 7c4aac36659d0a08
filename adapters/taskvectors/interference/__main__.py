"""A comparison in a process of its own: `python -m taskvectors.interference < request.json`.

Reads `{"files": {name: path}, "seconds": limit}`; writes `{"report": …}`, or
`{"error": {"type", "message"}}` with status 1 for an error of this library or of the system. It
yields to other processes, and ends after its limit, even if whoever started it is gone.
"""

import json
import os
import signal
import sys

from taskvectors.errors import TaskVectorError
from taskvectors.interference.compare import compare

NICENESS = 10


def main() -> int:
    """The status of the process."""
    request = json.load(sys.stdin)
    signal.alarm(int(request["seconds"]))
    os.nice(NICENESS)
    try:
        answer = {"report": compare(request["files"]).to_json(per_layer=True)}
    except (TaskVectorError, OSError) as error:
        answer = {"error": {"type": type(error).__name__, "message": str(error)}}
    json.dump(answer, sys.stdout, allow_nan=False, separators=(",", ":"))
    return int("error" in answer)


if __name__ == "__main__":
    sys.exit(main())
