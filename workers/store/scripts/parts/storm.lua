-- The storm guard, as domain/storm.py has it: losses are counted by place ("fleet" or "host:<host>"); many at once lower
-- the number of recoveries that may run there, until enough have come back.
-- P:losses:<kind>:<place> zset VM -> time; P:storm:<place> hash kind since limit back, only while there is a storm.
local STORM_KEPT_MS = 3600 * 1000

local function storm_key(place) return prefix .. ':storm:' .. place end
local function losses_key(kind, place) return prefix .. ':losses:' .. kind .. ':' .. place end
local function most(place) return place == 'fleet' and limits.per_fleet or limits.per_host end
local function share(place) return place == 'fleet' and limits.storm.fleet_share or limits.storm.host_share end

local function size(place)
  if place == 'fleet' then return redis.call('SCARD', prefix .. ':vms') end
  return redis.call('SCARD', prefix .. ':of:' .. string.sub(place, 6))
end

local function losses(kind, place)
  redis.call('ZREMRANGEBYSCORE', losses_key(kind, place), '-inf', now - limits.storm.window_ms)
  return redis.call('ZCARD', losses_key(kind, place))
end

local function storm_at(place)
  local found = redis.call('HMGET', storm_key(place), 'kind', 'since', 'limit', 'back')
  if not found[1] then return nil end
  return {kind = found[1], since = tonumber(found[2]), limit = tonumber(found[3]), back = tonumber(found[4])}
end

local function put_storm(place, storm)
  redis.call('HSET', storm_key(place), 'kind', storm.kind, 'since', storm.since, 'limit', storm.limit, 'back', storm.back)
  redis.call('PEXPIRE', storm_key(place), STORM_KEPT_MS)
end

local function about(place) return {scope = place, host = place == 'fleet' and '' or string.sub(place, 6)} end

local function cap(place)
  local storm = storm_at(place)
  if not storm then return most(place) end
  if storm.kind == 'uncertain' then return math.min(most(place), storm.limit) end
  return storm.back < most(place) and most(place) - storm.back or most(place)
end

local function count_loss(id, kind, place)
  local other = kind == 'certain' and 'uncertain' or 'certain'
  redis.call('ZREM', losses_key(other, place), id)
  redis.call('ZADD', losses_key(kind, place), now, id)
  redis.call('PEXPIRE', losses_key(kind, place), limits.storm.window_ms)
end

local function look_for_storm(place)
  local vms, certain, uncertain = size(place), losses('certain', place), losses('uncertain', place)
  local function are_many(n) return n >= limits.storm.at_least and n > share(place) * vms end
  local kind = are_many(uncertain) and 'uncertain' or are_many(certain + uncertain) and 'certain' or nil
  if not kind then return end
  local storm = storm_at(place)
  if storm and (storm.kind == kind or storm.kind == 'uncertain') then return end
  put_storm(place, {kind = kind, since = storm and storm.since or now, limit = 1, back = storm and storm.back or 0})
  local slowly = kind == 'uncertain' and 'recovery starts one at a time' or 'one slot-full comes back before the next'
  tell('storm_began', 'storm_guard', string.format('%d of %d VMs lost within %d s, %s: %s', certain + uncertain, vms,
    limits.storm.window_ms / 1000, kind, slowly), about(place))
end

local function storm_result(place, result)
  local storm = storm_at(place)
  if not storm then return end
  if result == 'failure' then
    storm.limit = math.max(1, math.floor(storm.limit / 2))
  else
    storm.limit, storm.back = math.min(most(place), storm.limit * 2), storm.back + 1
  end
  put_storm(place, storm)
end

local function end_storm(place)
  local storm = storm_at(place)
  if not storm or redis.call('ZCARD', line_key(place)) > 0 then return end
  local left = losses('certain', place) + losses('uncertain', place)
  if left * 2 > math.max(limits.storm.at_least, share(place) * size(place)) then return end
  redis.call('DEL', storm_key(place))
  tell('storm_ended', 'storm_guard', string.format('%d VMs came back in %d s, nobody waits', storm.back,
    (now - storm.since) / 1000), about(place))
end
