"""Which files Redis holds, for the byte budget of all replicas together.

One hash, `<prefix>:{files}`: digest → "bytes last-use" (milliseconds of the server's clock). Being
one key, it is lost whole or not at all; a file that is read is entered again, and an entry whose
file is gone ages until it is dropped like any other.
"""

from collections.abc import Callable
from typing import Any

_NOW = "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"

# ARGV: digest, size, budget, ttl_ms. Returns the bytes held then, and the digests to drop. The
# entry is made first: it is what fails when the server's memory is full.
_RESERVE = (
    _NOW
    + """
local size, budget, ttl = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %.0f', size, now))
redis.call('PEXPIRE', KEYS[1], 2 * ttl)
local total, files, gone = size, {}, {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if all[i] ~= ARGV[1] then
    local bytes, used = string.match(all[i + 1], '^(%d+) (%d+)$')
    if not bytes or #all[i] ~= 64 or #bytes > 15 or #used > 15 or tonumber(used) + ttl < now then
      redis.call('HDEL', KEYS[1], all[i])
    else
      total = total + tonumber(bytes)
      files[#files + 1] = {all[i], tonumber(bytes), tonumber(used)}
    end
  end
end
if total > budget then
  table.sort(files, function(a, b) return a[3] < b[3] end)
  for _, file in ipairs(files) do
    if total <= budget then break end
    redis.call('HDEL', KEYS[1], file[1])
    total = total - file[2]
    gone[#gone + 1] = file[1]
  end
end
return {string.format('%.0f', total), gone}
"""
)

# ARGV: digest, size, ttl_ms.
_TOUCH = (
    _NOW
    + """
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %.0f', tonumber(ARGV[2]), now))
redis.call('PEXPIRE', KEYS[1], 2 * ARGV[3])
"""
)


class RedisIndex:
    """The index under `prefix`. client: gives the redis-py client, whose errors are raised."""

    def __init__(self, client: Callable[[], Any], prefix: str, budget: int, ttl_ms: int) -> None:
        self._client, self._key = client, f"{prefix}:{{files}}"
        self._budget, self._ttl_ms = budget, ttl_ms
        self.nbytes: int | None = None

    def reserve(self, digest: str, size: int) -> list[str]:
        """Enter a file, most recently used; returns the files that had to go for it."""
        answer = self._client().eval(
            _RESERVE, 1, self._key, digest, size, self._budget, self._ttl_ms
        )
        self.nbytes = int(answer[0])
        return [gone.decode("ascii", "replace") for gone in answer[1]]

    def touch(self, digest: str, size: int) -> None:
        """Make a file the most recently used; enter it if the index was lost."""
        self._client().eval(_TOUCH, 1, self._key, digest, size, self._ttl_ms)

    def forget(self, digest: str) -> None:
        """The file is gone."""
        self._client().hdel(self._key, digest)

    def has(self, digest: str) -> bool:
        """Whether the file still has its room."""
        return bool(self._client().hexists(self._key, digest))
