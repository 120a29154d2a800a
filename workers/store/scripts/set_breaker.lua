-- parts: base common modes storm breaker line
-- Open or close a breaker by hand, with its event.
-- ARGV from 4: scope, "open" or "closed", why, actor, how long (ms) it stays open unless somebody closes it
-- Returns {1 or 0 where it was so already, {{vm id, host, episode or "", attempt}... called}, {event...} made here}
local scope, state = ARGV[4], ARGV[5]
local breaker = breaker_at(scope)
local by_hand = tonumber(ARGV[8])
if breaker.state == state and (state == 'closed' or breaker.cooldown == by_hand) then return {0, called, told} end
if state == 'open' then breaker.opened, breaker.cooldown = now, by_hand end
become(scope, breaker, state, ARGV[6], ARGV[7])
tend_breaker(scope)
call_and_tell()
return {1, called, told}
