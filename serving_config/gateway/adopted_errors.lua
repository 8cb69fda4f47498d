-- Runs on what clients of adopted archives get, who read TorchServe's errors: an error in the words of
-- the gateway, of an engine or of the worker's filter gets TorchServe's three names beside ours. What
-- the handler said is passed over: its worker says in Server-Timing how long it took.

local BY_HANDLER = "serialise;dur="  -- the last stage of vlserve.runtime.pipeline

-- Our code, or the status -> the class that TorchServe names.
local TYPES = {
  model_not_found = "ModelNotFoundException",
  version_not_found = "ModelVersionNotFoundException",
  ["401"] = "InvalidKeyException",
  ["404"] = "ResourceNotFoundException",
  ["405"] = "MethodNotAllowedException",
  ["501"] = "NotImplementedException",
  ["503"] = "ServiceUnavailableException",
}

-- Return the JSON string that begins at `start`, without its quotation marks and still escaped.
local function string_at(text, start)
  local at = start
  while true do
    at = text:find('["\\]', at)
    if not at then return end
    if text:sub(at, at) == '"' then return text:sub(start, at - 1) end
    at = at + 2
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(":status")
  if tonumber(status) < 400 then return end
  if (headers:get("server-timing") or ""):find(BY_HANDLER, 1, true) then return end
  local body = handle:body(true)
  local text = body:getBytes(0, body:length())
  local code, start = text:match('^{%s*"error":%s*{%s*"code":%s*"([%w_]+)",%s*"message":%s*"()')
  local message = code and string_at(text, start)
  if not message then return end
  local fault = tonumber(status) < 500 and "BadRequestException" or "InternalServerException"
  local kind = TYPES[code] or TYPES[status] or fault
  local names = '{"code": ' .. status .. ', "type": "' .. kind .. '", "message": "' .. message .. '", '
  body:setBytes(names .. text:sub(2))
end
