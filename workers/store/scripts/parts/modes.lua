-- Operator modes, as domain/modes.py has them: whether anything holds a VM now. What cannot be read holds.
local RANKS = {['observe-only'] = 1, maintenance = 2, paused = 3}
local holding = {}

local function any_modes()
  if holding.any == nil then holding.any = redis.call('EXISTS', prefix .. ':modes') == 1 end
  return holding.any
end

-- The strongest mode in force on this scope, or false.
local function holds(scope)
  if not any_modes() then return false end
  if holding[scope] == nil then
    local text = redis.call('HGET', prefix .. ':modes', scope)
    local is_known, set = pcall(cjson.decode, text or '{}')
    local strongest = not is_known and 'paused'
    for _, hold in ipairs(is_known and set.holds or {}) do
      local ends, mode = hold.until_ms or 0, hold.mode
      if ends > 0 and now >= ends then mode = now < ends + (hold.settle_ms or 0) and 'observe-only' end
      if mode and (RANKS[mode] or 3) > (RANKS[strongest] or 0) then strongest = mode end
    end
    holding[scope] = strongest
  end
  return holding[scope]
end

local function is_held(id, host)
  return (holds('fleet') or holds(host_place(host)) or holds('vm:' .. id)) and true
end
