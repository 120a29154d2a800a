-- Circuit breakers, as domain/breaker.py has them.
-- P:breaker:<scope> hash state generation opened cooldown successes, absent while closed and never opened;
-- …:probes zset VM -> end of its probe; …:ok:<n> and …:ko:<n> zsets child -> time of its last result, by way of counting;
-- P:breakers set of the scopes that are not closed.
local BREAKER_KEPT_MS = 3600 * 1000 -- longer than any attempt: results of an older life must find its generation
local MOST_WAYS = 2 -- of counting, per scope (domain.breaker.calls_of)

local function breaker_at(scope)
  local found = redis.call('HMGET', breaker_key(scope), 'state', 'generation', 'opened', 'cooldown', 'successes')
  return {state = found[1] or 'closed', generation = tonumber(found[2] or 0), opened = tonumber(found[3] or 0),
    cooldown = tonumber(found[4] or 0), successes = tonumber(found[5] or 0)}
end

local function put_breaker(scope, breaker)
  redis.call('HSET', breaker_key(scope), 'state', breaker.state, 'generation', breaker.generation, 'opened',
    breaker.opened, 'cooldown', breaker.cooldown, 'successes', breaker.successes)
  if breaker.state == 'closed' then redis.call('PEXPIRE', breaker_key(scope), BREAKER_KEPT_MS)
  else redis.call('PERSIST', breaker_key(scope)) end
end

local function become(scope, breaker, state, why, actor)
  local before = breaker.state
  for n = 1, MOST_WAYS do redis.call('DEL', breaker_key(scope) .. ':ok:' .. n, breaker_key(scope) .. ':ko:' .. n) end
  redis.call('DEL', breaker_key(scope) .. ':probes')
  redis.call('HDEL', breaker_key(scope), 'offered')
  breaker.state, breaker.generation, breaker.successes = state, breaker.generation + 1, 0
  if state == 'closed' then
    redis.call('SREM', prefix .. ':breakers', scope)
  else
    redis.call('SADD', prefix .. ':breakers', scope)
  end
  put_breaker(scope, breaker)
  tell('breaker', actor or 'breaker', before .. ' -> ' .. state .. ': ' .. why, {scope = scope})
end

local function open(scope, breaker, why)
  local longer = breaker.state == 'half_open' and breaker.cooldown * 2 or limits.breaker.cooldown_ms
  breaker.cooldown, breaker.opened = math.min(longer, limits.breaker.max_cooldown_ms), now
  become(scope, breaker, 'open', string.format('%s; next probe in %d s', why, math.ceil(breaker.cooldown / 1000)))
end

-- The breaker after what time alone makes of it.
local function breaker_now(scope)
  local breaker = breaker_at(scope)
  if breaker.state == 'open' and now - breaker.opened >= breaker.cooldown then
    become(scope, breaker, 'half_open', 'its cool-down is over')
  elseif breaker.state == 'half_open' and redis.call('ZCOUNT', breaker_key(scope) .. ':probes', '-inf', now) > 0 then
    open(scope, breaker, 'the holder of a probe went away')
  end
  return breaker
end

local function free_probes(scope) return limits.breaker.probes - redis.call('ZCARD', breaker_key(scope) .. ':probes') end

local function admits(scope)
  local breaker = breaker_now(scope)
  return breaker.state == 'closed' or breaker.state == 'half_open' and free_probes(scope) > 0
end

-- Admit an attempt; returns the generation under which its result will count.
local function enter(scope, id, ends)
  local breaker = breaker_at(scope)
  if breaker.state == 'half_open' then
    redis.call('ZADD', breaker_key(scope) .. ':probes', ends, id)
    redis.call('HDEL', breaker_key(scope), 'offered')
  end
  return breaker.generation
end

local function count_child(scope, n, child, result)
  local ok, ko = breaker_key(scope) .. ':ok:' .. n, breaker_key(scope) .. ':ko:' .. n
  local to, from = ok, ko
  if result == 'failure' then to, from = ko, ok end
  redis.call('ZREM', from, child)
  redis.call('ZADD', to, now, child)
  redis.call('PEXPIRE', to, limits.breaker.window_ms)
  for _, key in ipairs({ok, ko}) do redis.call('ZREMRANGEBYSCORE', key, '-inf', now - limits.breaker.window_ms) end
  local failing = redis.call('ZCARD', ko)
  local calls = failing + redis.call('ZCARD', ok)
  return calls >= limits.breaker.min_calls and failing >= limits.breaker.failure_rate * calls, failing, calls
end

-- Count how an attempt ended: "success", "failure", or nil where that says nothing and only its probe is given back.
local function leave(entry, id, result)
  local scope = entry.scope
  local breaker = breaker_now(scope)
  if entry.generation ~= breaker.generation then return end
  if breaker.state == 'half_open' then
    if redis.call('ZREM', breaker_key(scope) .. ':probes', id) == 0 or not result then return end
    breaker.successes = breaker.successes + 1
    if result == 'failure' then open(scope, breaker, 'the probe of ' .. id .. ' failed')
    elseif breaker.successes >= limits.breaker.successes then become(scope, breaker, 'closed', 'its probes succeeded')
    else put_breaker(scope, breaker) end
  elseif breaker.state == 'closed' and result then
    local all, words = result == 'failure', {}
    for n, child in ipairs(entry.children) do
      local too_many, failing, calls = count_child(scope, n, child, result)
      all = all and too_many
      words[n] = failing .. ' of ' .. calls
    end
    if all then open(scope, breaker, string.format('%s failed within %d s', table.concat(words, ' and '),
      limits.breaker.window_ms / 1000)) end
  end
end
