-- Runs on a request to an adopted archive, whose handler may read any header: packs the client's
-- into the one that engines hand on, as `name:value` with a blank between two
-- (src/vlserve/runtime/exchange.py reads it). Once a try; the first has packed them.

local OURS = {"x-vlserve-", "x-envoy-"}
-- Of one connection, of this gateway, or made by it; engines get the request id by itself.
local LEFT_OUT = {
  ["x-api-key"] = true, ["x-forwarded-proto"] = true, connection = true, ["keep-alive"] = true,
  ["proxy-authorization"] = true, ["proxy-connection"] = true, te = true, trailer = true,
  ["transfer-encoding"] = true, upgrade = true, expect = true, ["x-request-id"] = true,
}

local function is_left_out(name)
  if name:sub(1, 1) == ":" or LEFT_OUT[name] then return true end
  for _, prefix in ipairs(OURS) do
    if name:sub(1, #prefix) == prefix then return true end
  end
end

local function escaped(value)
  return (value:gsub("[^!-$&-~]", function(letter)
    return string.format("%%%02X", letter:byte())
  end))
end

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get("x-vlserve-headers") then return end
  local packed = {}
  for name, value in pairs(headers) do
    if not is_left_out(name) then packed[#packed + 1] = name .. ":" .. escaped(value) end
  end
  headers:add("x-vlserve-headers", table.concat(packed, " "))
end
