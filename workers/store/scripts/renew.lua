-- Prolong a lease that is still ours, with its slots.
-- KEYS: 1 VM hash, 2 fleet slots; the slots of its host are named after them (keys.py). ARGV: 1 vm id, 2 owner, 3 ttl in ms.
-- Returns 1, or 0 if the lease is not ours.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local vm = redis.call('HMGET', KEYS[1], 'lo', 'lu', 'host')
if vm[1] ~= ARGV[2] or tonumber(vm[2]) <= now then return 0 end
local ends = now + ARGV[3]
redis.call('HSET', KEYS[1], 'lu', ends)
for _, slots in ipairs({KEYS[2], KEYS[2] .. ':' .. vm[3]}) do redis.call('ZADD', slots, 'XX', ends, ARGV[1]) end
return 1
