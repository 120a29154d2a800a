-- parts: base
-- The epoch of the data: look at it, begin the first one, or let an operator's word begin another (domain/epoch.py).
-- P:epoch hash id; P:epochs zset of earlier ids that operators confirmed as predecessors -> when; P:halted hash host ->
-- JSON of why, with the epoch it knows.
-- ARGV: 1 prefix, 2 what: "look", "begin" (only where there is none) or "confirm", 3 epoch this host knows or "", 4 last
--   event it knows, 5 id for a new epoch, 6 event to write down (JSON) or "", 7 how long a lease may last (ms)
-- Returns {epoch id or "", last event id, 1 if the known event is there or was trimmed away, 1 if the epoch follows the
--   known one}
local what, known, last_known = ARGV[2], ARGV[3], ARGV[4]
local key, past = prefix .. ':epoch', prefix .. ':epochs'
local id = redis.call('HGET', key, 'id')

if what == 'begin' and not id then
  id = ARGV[5]
  redis.call('HSET', key, 'id', id)
elseif what == 'confirm' then
  if id then redis.call('ZADD', past, now, id) end
  for _, why in ipairs(redis.call('HVALS', prefix .. ':halted')) do
    local theirs = cjson.decode(why).epoch
    if theirs ~= '' then redis.call('ZADD', past, now, theirs) end
  end
  id = ARGV[5]
  redis.call('HSET', key, 'id', id)
  -- Attempts that the lost data had admitted may still be at work: nobody is admitted before their leases have ended.
  redis.call('HSET', prefix .. ':server', 'until', now + ARGV[7])
end
if ARGV[6] ~= '' then redis.call('XADD', stream, '*', 'e', ARGV[6]) end

local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
local follows = known ~= '' and id and redis.call('ZSCORE', past, known)
return {id or '', last and last[1] or '0-0', remembers(last_known) and 1 or 0, follows and 1 or 0}
