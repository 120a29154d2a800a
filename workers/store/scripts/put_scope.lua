-- parts: base
-- Set what operators hold on one scope, if it is still what was read; the event is written with it.
-- ARGV from 2: scope, what was read (JSON, "" for none, "?" for what could not be read), what to write (JSON, "" for
--   none), event, events to keep
-- Returns 1, or 0 where somebody else wrote meanwhile
local key = prefix .. ':modes'
if ARGV[3] ~= '?' and (redis.call('HGET', key, ARGV[2]) or '') ~= ARGV[3] then return 0 end
if ARGV[4] == '' then redis.call('HDEL', key, ARGV[2]) else redis.call('HSET', key, ARGV[2], ARGV[4]) end
redis.call('XADD', stream, 'MAXLEN', '~', ARGV[6], '*', 'e', ARGV[5])
return 1
