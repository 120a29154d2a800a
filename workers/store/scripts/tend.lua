-- parts: base common storm breaker line
-- What time alone brings about, looked after by each host's heartbeat: storms that are over, cool-downs and probes that
-- have ended, slots that were kept for somebody who did not come.
-- ARGV from 4: host
-- Returns {{vm id, host, episode or "", attempt}... called}, {event...} made here, id of the last event there is, or "",
--   1 if the data are those the host knows}
for _, place in ipairs({host_place(ARGV[4]), 'fleet'}) do end_storm(place) end
for _, scope in ipairs(redis.call('SMEMBERS', prefix .. ':breakers')) do tend_breaker(scope) end
must_call(ARGV[4])
call_and_tell()
local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
last_event = last and last[1] or ''
return {called, told, last_event, intact and 1 or 0}
