-- Operator modes, as domain/modes.py has them: whether anything holds a VM now. What cannot be read holds.
local holding = {}

local function holds(scope)
  if holding[scope] == nil then
    local text = redis.call('HGET', prefix .. ':modes', scope)
    local is_known, set = pcall(cjson.decode, text or '{}')
    holding[scope] = not is_known
    for _, hold in ipairs(is_known and set.holds or {}) do
      local ends = hold.until_ms or 0
      if ends == 0 or now < ends + (hold.settle_ms or 0) then holding[scope] = true end
    end
  end
  return holding[scope]
end

local function is_held(id, host)
  if holding.any == nil then holding.any = redis.call('EXISTS', prefix .. ':modes') == 1 end
  return holding.any and (holds('fleet') or holds(host_place(host)) or holds('vm:' .. id))
end
