"""The Lua scripts of the result store. Redis runs each of them in one step (Redis 5 or newer, or Valkey).

A claim is a hash at `nanoagent:claim:{requestId}`:

    token     The fencing token: the server's clock in microseconds, or one more than the previous token if
              the clock has gone backward. A counter is not used: it would start again if the server loses
              its data, and it would repeat numbers if a failover loses the latest writes.
    owner     The process that has the claim.
    until     The end of the claim, the server's clock in microseconds; 0 if the claim was released.
    others    The number of earlier claims of the request. If it is not 0, the hash is kept after the claim
              has ended, so that a late result of an earlier owner is refused.
    refusals  How often another worker was refused because of this claim.
    about     The function and the memory of the job, for the index of jobs (`job_index`). It is empty if the
              worker keeps no index. Earlier versions of the worker do not set it.

If a process was paused (SIGSTOP) or had no network, it may find a larger token or a result here afterwards.
Then the result of this process is refused.

The set at `nanoagent:failed:{requestId}` has the tokens of the failed attempts at a request. So an attempt
that is reported twice counts once. If a worker claims the request after the end of another claim that was not
released, the token of the other claim is added to the set: its worker has died or hung. The set is deleted
when the request gets a result. So the count starts again if the request is sent again or redriven. (Earlier
versions of the worker have a number at `nanoagent:failures:` instead. They may run beside this version.)

The commands for the index of jobs are called with `pcall`: if Redis refuses them, no job fails.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

CLAIM_TTL_S: Final = 86_400
"""The time for which a claim that was not released is kept, seconds.

It is longer than the longest lease of a message (12 h).
"""

FAILURES_TTL_S: Final = 86_400
"""The time for which failed attempts are kept after the last one, seconds.

It is longer than the longest delay of a returned job.
"""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script.

    Attributes:
        text: The script's text.
        digest: The text's SHA-1 in hexadecimal, by which EVALSHA finds the script.
    """

    text: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        """Compute the digest."""
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "digest", digest)


INDEX_KEY: Final = "nanoagent:jobs"
"""The stream of jobs that have ended, see `job_index`."""

RUNNING_KEY: Final = "nanoagent:running"
"""The sorted set of claimed requests, see `job_index`."""

LOST_TTL_S: Final = 3600
"""The time for which `RUNNING_KEY` keeps a request whose claim has ended without a release, seconds."""

CLAIM: Final = Script(
    f"""
-- KEYS: result, claim, failed attempts, cancellation, lease of followers.
-- ARGV: owner, length of the claim (us), time to keep the result (s), channel, description or empty
local document = redis.call('GET', KEYS[1])
if document then
  redis.call('EXPIRE', KEYS[1], ARGV[3])
  redis.call('PUBLISH', ARGV[4], document)
  return 'answered ' .. document
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local held = redis.call('HMGET', KEYS[2], 'token', 'owner', 'until', 'others')
local token, others = now, 0
if held[1] then
  if held[2] ~= ARGV[1] then
    if tonumber(held[3]) > now then
      local refusals = redis.call('HINCRBY', KEYS[2], 'refusals', 1)
      return string.format('taken %.0f %d', held[3] - now, refusals)
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
local ends = string.format('%.0f', now + ARGV[2])
redis.call('HSET', KEYS[2], 'token', token, 'owner', ARGV[1],
  'until', ends, 'others', string.format('%.0f', others), 'about', ARGV[5])
if ARGV[5] ~= '' then
  redis.pcall('ZADD', '{RUNNING_KEY}', ends, string.sub(KEYS[1], 5))
end
if held[1] then
  redis.call('HDEL', KEYS[2], 'refusals')
end
redis.call('EXPIRE', KEYS[2], {CLAIM_TTL_S})
local cancelled, followed = redis.call('EXISTS', KEYS[4]), redis.call('EXISTS', KEYS[5])
return string.format('claimed %s %d %d %d', token, cancelled, redis.call('SCARD', KEYS[3]), followed)
"""
)
"""Claim a request. Returns one string, because the client parses a string faster than an array:

* `claimed TOKEN CANCELLED FAILURES FOLLOWED`: the claim is granted.
* `taken MICROSECONDS REFUSALS`: another process has the claim, for so long.
* `answered RESULT`: the request has a result, which is published again.
"""

PUBLISH: Final = Script(
    f"""
-- KEYS: result, claim, failed attempts.
-- ARGV: token, time to keep the result (s), channel, document, entry of the index or empty, size of the
-- index, time to keep the index (s)
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
if ARGV[5] ~= '' then
  redis.pcall('ZREM', '{RUNNING_KEY}', string.sub(KEYS[1], 5))
  redis.pcall('XADD', '{INDEX_KEY}', 'MAXLEN', '~', ARGV[6], '*', 'job', ARGV[5])
  redis.pcall('EXPIRE', '{INDEX_KEY}', ARGV[7])
end
return 1
"""
)
"""Store and publish a result, unless the request has a result or a newer claim.

Returns 1 if the result was stored, now or by an earlier call; otherwise 0.
"""

RENEW: Final = Script(
    f"""
-- KEYS: result, claim.  ARGV: token, length of the claim (us), owner, 1 if there is an index
local time = redis.call('TIME')
local lasts = string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[2])
local token = redis.call('HGET', KEYS[2], 'token')
if token == ARGV[1] then
  redis.call('HSET', KEYS[2], 'until', lasts)
  if ARGV[4] == '1' then
    redis.pcall('ZADD', '{RUNNING_KEY}', lasts, string.sub(KEYS[1], 5))
  end
  return 1
end
if token or redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
-- The server has lost the claim: a restart, a failover, a flush. It may have lost earlier claims, too.
-- Therefore `others` is 1.
redis.call('HSET', KEYS[2], 'token', ARGV[1], 'owner', ARGV[3], 'until', lasts, 'others', 1)
redis.call('EXPIRE', KEYS[2], {CLAIM_TTL_S})
return 1
"""
)
"""Renew a claim. Returns 0 if another worker has claimed or answered the request, otherwise 1."""

RELEASE: Final = Script(
    f"""
-- KEYS: result, claim, failed attempts.
-- ARGV: token, or 0 for any claim of the owner; owner; 1 if the attempt failed;
-- entry of the index or empty, size of the index, time to keep the entry (s)
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
  if ARGV[5] ~= '0' then
    redis.pcall('ZREM', '{RUNNING_KEY}', string.sub(KEYS[1], 5))
  end
  if ARGV[4] ~= '' then
    redis.pcall('XADD', '{INDEX_KEY}', 'MAXLEN', '~', ARGV[5], '*', 'job', ARGV[4])
    redis.pcall('EXPIRE', '{INDEX_KEY}', ARGV[6])
  end
end
return redis.call('SCARD', KEYS[3])
"""
)
"""Release a claim. Returns the number of failed attempts at the request."""

TEND: Final = Script(
    f"""
-- ARGV: time to keep entries (s)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local old = redis.call('XRANGE', '{INDEX_KEY}', '-', string.format('%.0f', time[1] * 1000 - ARGV[1] * 1000),
  'COUNT', 500)
for index, entry in ipairs(old) do
  redis.call('XDEL', '{INDEX_KEY}', entry[1])
end
redis.call('ZREMRANGEBYSCORE', '{RUNNING_KEY}', '-inf', string.format('%.0f', now - {LOST_TTL_S} * 1000000))
redis.call('EXPIRE', '{RUNNING_KEY}', {CLAIM_TTL_S})
return 1
"""
)
"""Remove old entries of the index of jobs, and claimed requests that no worker has renewed for long."""

APPEND: Final = Script(
    """
-- KEYS: live log, claim, lease of followers.
-- ARGV: token, time to keep the live log (s), largest size (bytes), then for each record: kind, attempt,
-- position, bytes of the stream that the data stands for or -1, data
local held = redis.call('HGET', KEYS[2], 'token')
if held and held ~= ARGV[1] then
  return -1
end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local bytes = last and tonumber(last[2][2]) or 0
for i = 4, #ARGV, 5 do
  bytes = bytes + 64 + #ARGV[i + 4] -- 64: a record without its data
  redis.call('XADD', KEYS[1], '*', 'bytes', string.format('%.0f', bytes), 'kind', ARGV[i],
    'attempt', ARGV[i + 1], 'position', ARGV[i + 2], 'printed', ARGV[i + 3], 'data', ARGV[i + 4])
end
local left = bytes
while left > tonumber(ARGV[3]) do
  local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  left = bytes - tonumber(first[2][2])
  if left <= 0 then
    break
  end
  redis.call('XDEL', KEYS[1], first[1])
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('EXISTS', KEYS[3])
"""
)
"""Append records to a live log. Each record has the bytes of all records up to it, also of deleted ones.

Returns 1 if somebody follows the job, otherwise 0; -1 if another worker has claimed the request.
"""

PROBE_KEYS: Final = (
    *("job:~probe", "nanoagent:claim:~probe", "nanoagent:failed:~probe", "cancel:~probe"),
    *(f"{INDEX_KEY}:~probe", f"{RUNNING_KEY}:~probe"),
)
"""The keys of a request that cannot exist, because a requestId has no tilde. A cluster refuses the probe,
because the keys are in several of its slots."""

PROBE_CHANNELS: Final = ("result:~probe", "cancel:~probe", "nanoagent:follow:~probe")
"""The channels of the result and of the cancellation of this request, and one of a worker for followers."""

PROBE: Final = Script(
    """
-- KEYS: as in RELEASE, and a cancellation; then an index, and a set of claimed requests.
-- ARGV: channel, 1 if there is an index.
-- DEL and EXPIRE come before the first write: if a later command is refused, no key is left for long.
redis.call('EXPIRE', KEYS[1], 1)
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('EXISTS', KEYS[4])
redis.call('GET', KEYS[1])
redis.call('HGET', KEYS[2], 'token')
redis.call('HMGET', KEYS[2], 'token', 'others')
redis.call('HDEL', KEYS[2], 'refusals')
redis.call('SCARD', KEYS[3])
local patterns = redis.pcall('PUBSUB', 'NUMPAT')
if type(patterns) ~= 'number' or patterns == 0 then -- not while a client listens on result:*
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
local refusal
local function try(...)
  local answer = redis.pcall(...)
  refusal = refusal or type(answer) == 'table' and answer.err
end
if ARGV[2] == '1' then
  try('EXPIRE', KEYS[5], 1)
  try('ZREM', KEYS[6], '~probe')
  try('ZREMRANGEBYSCORE', KEYS[6], 0, 0)
  try('XDEL', KEYS[5], '0-1')
  try('XRANGE', KEYS[5], '-', '+', 'COUNT', 1)
  if not refusal then
    try('ZADD', KEYS[6], 0, '~probe')
    try('XADD', KEYS[5], 'MAXLEN', '~', 1, '*', 'job', '')
    redis.call('DEL', KEYS[5], KEYS[6])
  end
end
return refusal or 1
"""
)
"""Run the commands of the other scripts once, for a request that cannot exist. No key is left.

Returns 1, or the reason why Redis refuses the commands for the index of jobs.
"""
