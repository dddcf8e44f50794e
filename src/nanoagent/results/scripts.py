"""What Redis does in one step, in its own language (Redis 5 or newer, or Valkey).

A claim is a hash at `nanoagent:claim:{requestId}`:

    token   the fencing token: the server's clock in microseconds, or one more than the last where that has
            gone backward. A counter would begin anew on a server that has lost it, and a failover loses the
            latest writes
    owner   the process that has the claim
    until   the server's microseconds until which nobody else may take it
    others  how many have had it before; while any has, the hash outlives the claim, so that what those
            still want to publish is known to be late

Whoever has been stopped in between (SIGSTOP, a partition) finds a larger token here, or a result, and is
refused.

The attempts at a request that failed by our fault are a set of their tokens, so that what is said twice
counts once, at `nanoagent:failed:{requestId}`. (Earlier versions, which may run beside this one, have a
number at `nanoagent:failures:`.) A claim that was neither let go nor renewed when another worker takes it is
one of them, since its worker has died or hung; an `until` of 0 says that it was let go. The answer ends the
set, so that whoever sends a request anew, or redrives it, begins anew.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

CLAIM_TTL_S: Final = 86_400
"""How long a claim that nobody let go is remembered: longer than any message may be held (12 h)."""

FAILURES_TTL_S: Final = 86_400
"""How long failures are remembered after the last: longer than a job that failed stays away."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name under which Redis keeps it.

    Attributes:
        text: Lua.
        digest: Its SHA-1, as EVALSHA wants it.
    """

    text: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        """Digest the text."""
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "digest", digest)


CLAIM: Final = Script(
    f"""
-- KEYS: the result, the claim, the failures, the call-off.
-- ARGV: owner, claim for (us), result for (s), channel
local document = redis.call('GET', KEYS[1])
if document then
  redis.call('EXPIRE', KEYS[1], ARGV[3])
  redis.call('PUBLISH', ARGV[4], document)
  return {{'answered', document}}
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local held = redis.call('HMGET', KEYS[2], 'token', 'owner', 'until', 'others')
local token, others = now, 0
if held[1] then
  if held[2] ~= ARGV[1] then
    if tonumber(held[3]) > now then
      local refusals = redis.call('HINCRBY', KEYS[2], 'refusals', 1)
      return {{'taken', string.format('%.0f', held[3] - now), refusals}}
    end
    if held[3] ~= '0' then
      redis.call('SADD', KEYS[3], held[1])
      redis.call('EXPIRE', KEYS[3], {FAILURES_TTL_S})
    end
  end
  token = math.max(now, held[1] + 1)
  others = held[4] + 1
end
token = string.format('%.0f', token)
redis.call('HSET', KEYS[2], 'token', token, 'owner', ARGV[1],
  'until', string.format('%.0f', now + ARGV[2]), 'others', string.format('%.0f', others))
if held[1] then
  redis.call('HDEL', KEYS[2], 'refusals')
end
redis.call('EXPIRE', KEYS[2], {CLAIM_TTL_S})
return {{'claimed', token, redis.call('EXISTS', KEYS[4]), redis.call('SCARD', KEYS[3])}}
"""
)
"""Take the right to answer; or say who has it, or announce the answer again."""

PUBLISH: Final = Script(
    """
-- KEYS: the result, the claim, the failures.  ARGV: token, result for (s), channel, document
local stored = redis.call('GET', KEYS[1])
if stored then
  return stored == ARGV[4] and 1 or 0
end
local held = redis.call('HMGET', KEYS[2], 'token', 'others')
if held[1] and held[1] ~= ARGV[1] then
  return 0
end
redis.call('SETEX', KEYS[1], ARGV[2], ARGV[4])
redis.call('PUBLISH', ARGV[3], ARGV[4])
redis.call('DEL', KEYS[3])
if held[2] == '0' then
  redis.call('DEL', KEYS[2])
elseif held[1] then
  redis.call('HSET', KEYS[2], 'until', 0)
end
return 1
"""
)
"""Answer, unless someone else has, or may be about to. The first answer stays."""

RENEW: Final = Script(
    f"""
-- KEYS: the result, the claim.  ARGV: token, claim for (us), owner
local time = redis.call('TIME')
local lasts = string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[2])
local token = redis.call('HGET', KEYS[2], 'token')
if token == ARGV[1] then
  redis.call('HSET', KEYS[2], 'until', lasts)
  return 1
end
if token or redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
-- The server has lost it: a restart, a failover, a flush. Who had it before is not known any more.
redis.call('HSET', KEYS[2], 'token', ARGV[1], 'owner', ARGV[3], 'until', lasts, 'others', 1)
redis.call('EXPIRE', KEYS[2], {CLAIM_TTL_S})
return 1
"""
)
"""Keep the right for longer; 0 when someone else has it or has answered."""

RELEASE: Final = Script(
    f"""
-- KEYS: the result, the claim, the failures.
-- ARGV: token, or 0 for whichever the owner has; owner; 1 if the attempt failed
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SADD', KEYS[3], ARGV[1])
  redis.call('EXPIRE', KEYS[3], {FAILURES_TTL_S})
end
local held = redis.call('HMGET', KEYS[2], 'token', 'others', 'owner')
if held[1] == ARGV[1] or (ARGV[1] == '0' and held[3] == ARGV[2]) then
  if held[2] == '0' then
    redis.call('DEL', KEYS[2])
  else
    redis.call('HSET', KEYS[2], 'until', 0)
  end
end
return redis.call('SCARD', KEYS[3])
"""
)
"""Let others have the right at once; how many attempts have failed."""

PROBE_KEYS: Final = ("job:~probe", "nanoagent:claim:~probe", "nanoagent:failed:~probe", "cancel:~probe")
"""The keys of a request that cannot exist: a requestId has no tilde. A cluster has them in several slots."""

PROBE_CHANNELS: Final = ("result:~probe", "cancel:~probe")
"""The channels of its result and of its cancellation."""

PROBE: Final = Script(
    """
-- KEYS: as CLAIM's.  ARGV: channel.  Whatever may be refused comes before the keys are written.
redis.call('EXPIRE', KEYS[1], 1)
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('EXISTS', KEYS[4])
redis.call('GET', KEYS[1])
redis.call('HGET', KEYS[2], 'token')
redis.call('HMGET', KEYS[2], 'token', 'others')
redis.call('HDEL', KEYS[2], 'refusals')
redis.call('SCARD', KEYS[3])
local patterns = redis.pcall('PUBSUB', 'NUMPAT')
if type(patterns) ~= 'number' or patterns == 0 then -- a subscriber to result:* is not told of it
  redis.call('PUBLISH', ARGV[1], '{"requestId":"~probe"}')
end
local time = redis.call('TIME')
redis.call('SETEX', KEYS[1], 1, time[1])
redis.call('HSET', KEYS[2], 'token', time[1], 'others', 0)
redis.call('EXPIRE', KEYS[2], 1)
redis.call('HINCRBY', KEYS[2], 'refusals', 1)
redis.call('SADD', KEYS[3], time[1])
redis.call('EXPIRE', KEYS[3], 1)
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
return 1
"""
)
"""Run the commands of the other scripts once, for a request that cannot exist; no key remains."""
