#!lua name=tern_routes_1

-- A user is a hash: of each install 16 hex digits of stamp, then "+" and a route, or "-": it was removed.
-- Stamps are compared as text: a number of Lua has 53 bits. Functions answer with "" if it is so now, with "other" if
-- another route is there, and with the stamp of what is there if that is as late or later.

local INSTALLS = 32

-- Lets go what removals left before a time, and of too many installs the oldest; says how long the user is kept.
local function tidy(user, before, ttl_ms, removed_ttl_ms)
  local all, kept, has_route = redis.call('HGETALL', user), {}, false
  for i = 1, #all, 2 do
    local is_route = string.sub(all[i + 1], 17, 17) == '+'
    if not is_route and string.sub(all[i + 1], 1, 16) < before then
      redis.call('HDEL', user, all[i])
    else
      has_route = has_route or is_route
      kept[#kept + 1] = string.sub(all[i + 1], 1, 16) .. all[i]
    end
  end
  if #kept > INSTALLS then
    table.sort(kept)
    for i = 1, #kept - INSTALLS do
      redis.call('HDEL', user, string.sub(kept[i], 17))
    end
  end
  redis.call('PEXPIRE', user, has_route and ttl_ms or removed_ttl_ms)
end

-- The stamp of what keeps `value` out, which begins with a stamp; nil: it is there, or may be written; then whether it is.
local function newer(there, value)
  if not there or there == value then
    return nil, there == value
  end
  local stamp = string.sub(there, 1, 16)
  if stamp >= string.sub(value, 1, 16) then
    return stamp, false
  end
  return nil, false
end

-- keys: user; args: stamp, before, ttl in ms, ttl of removals in ms, install, route
local function put(keys, args)
  local value = args[1] .. '+' .. args[6]
  local stamp = newer(redis.call('HGET', keys[1], args[5]), value)
  if stamp then
    return stamp
  end
  redis.call('HSET', keys[1], args[5], value)
  tidy(keys[1], args[2], args[3], args[4])
  return ''
end

-- as put
local function remove(keys, args)
  local there, value = redis.call('HGET', keys[1], args[5]), args[1] .. '-'
  local stamp = newer(there, value)
  if stamp then
    return stamp
  end
  if there and string.sub(there, 17, 17) == '+' and string.sub(there, 18) ~= args[6] then
    return 'other'
  end
  redis.call('HSET', keys[1], args[5], value)
  tidy(keys[1], args[2], args[3], args[4])
  return ''
end

-- keys: user; args: stamp, before, ttl in ms, ttl of removals in ms, then install and route of each device
local function announce(keys, args)
  local named, highest = {}, ''
  for i = 5, #args, 2 do
    named[args[i]] = args[1] .. '+' .. args[i + 1]
  end
  local all, there = redis.call('HGETALL', keys[1]), {}
  for i = 1, #all, 2 do
    there[all[i]] = all[i + 1]
    if not named[all[i]] and string.sub(all[i + 1], 17, 17) == '+' then
      named[all[i]] = args[1] .. '-'
    end
  end
  for install, value in pairs(named) do
    local stamp, is_so = newer(there[install], value)
    if stamp then
      highest = stamp > highest and stamp or highest
    elseif not is_so then
      redis.call('HSET', keys[1], install, value)
    end
  end
  tidy(keys[1], args[2], args[3], args[4])
  return highest
end

-- keys: link; args: generation
local function finish(keys, args)
  if redis.call('GET', keys[1]) ~= args[1] then
    return ''
  end
  redis.call('DEL', keys[1])
  return 'ended'
end

redis.register_function('tern_routes_1_put', put)
redis.register_function('tern_routes_1_remove', remove)
redis.register_function('tern_routes_1_announce', announce)
redis.register_function('tern_routes_1_end', finish)
