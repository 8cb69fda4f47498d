-- Runs on answers to calls of the Open Inference Protocol's gRPC service, before they are made gRPC
-- again. What is no message becomes a note of HTTP's status, gRPC's, and the words:
-- grpc_request.lua puts them into the answer, and the access log has the status.

local MESSAGE = "application/x-protobuf"
local NOTED = "vlserve.grpc"
local MOST_SAID_BYTES = 4096

-- HTTP's status -> gRPC's; any other is INTERNAL.
local INTERNAL = "13"
local GRPC = {
  [400] = "3", [401] = "16", [403] = "7", [404] = "5", [405] = "12", [408] = "4", [413] = "8",
  [414] = "3", [415] = "3", [422] = "3", [429] = "8", [431] = "8", [499] = "1", [501] = "12",
  [503] = "14", [504] = "4",
}

-- Code of what Envoy says itself -> its status, which gRPC's form of it has lost. A test holds them
-- to envoy.yaml and to the routes.
local STATUS = {
  bad_request = 400, unauthorized = 401, model_not_found = 404, not_found = 404,
  version_not_found = 404, method_not_allowed = 405, request_timeout = 408, body_too_large = 413,
  path_too_long = 414, rate_limited = 429, headers_too_large = 431, not_implemented = 501,
  transfer_encoding_unsupported = 501, engine_unavailable = 503, gateway_starting = 503,
  overloaded = 503, version_unavailable = 503, deadline_exceeded = 504,
}

local ESCAPED = {b = "\b", f = "\f", n = "\n", r = "\r", t = "\t"}

local function utf8(point)
  if point < 0x80 then return string.char(point) end
  if point < 0x800 then
    return string.char(0xC0 + math.floor(point / 64), 0x80 + point % 64)
  end
  return string.char(
    0xE0 + math.floor(point / 4096), 0x80 + math.floor(point / 64) % 64, 0x80 + point % 64
  )
end

-- Returns the string that is the value of `name` in a JSON text; nil where it is no string.
local function value_of(name, json)
  local at = select(2, json:find('"' .. name .. '":%s*"'))
  if not at then return nil end
  local pieces, from = {}, at + 1
  while true do
    local mark = json:find('["\\]', from)
    if not mark then return nil end
    pieces[#pieces + 1] = json:sub(from, mark - 1)
    if json:byte(mark) == 34 then return table.concat(pieces) end
    local letter = json:sub(mark + 1, mark + 1)
    local point = letter == "u" and tonumber(json:sub(mark + 2, mark + 5), 16)
    pieces[#pieces + 1] = point and utf8(point) or ESCAPED[letter] or letter
    from = mark + (point and 6 or 2)
  end
end

local function note(handle, status, grpc_status, message)
  local noted = handle:streamInfo():dynamicMetadata()
  noted:set(NOTED, "status", status)
  if grpc_status then
    noted:set(NOTED, "grpc_status", grpc_status)
    noted:set(NOTED, "message", message)
  end
end

-- `status`: nil of what Envoy says itself.
local function note_error(handle, status, said)
  local message = value_of("error", said)
  local code = value_of("code", said) or (message or ""):match("^([%w_]+): ") or "gateway_error"
  status = status or STATUS[code] or 500
  message = message or code .. ": " .. (value_of("message", said) or said)
  note(handle, status, GRPC[status] or INTERNAL, message)
end

local function unescaped(text)
  return (text:gsub("%%(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end))
end

-- Makes an empty message of an answer that is none: of any other type the bridge knows better.
local function empty(headers, body)
  headers:replace(":status", "200")
  headers:replace("content-type", MESSAGE)
  headers:remove("content-length")
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  if body then body:setBytes("") end
end

function envoy_on_response(handle)
  local earlier = handle:streamInfo():dynamicMetadata():get(NOTED)
  if earlier and earlier["status"] then return end  -- grpc_request.lua has refused the call
  local headers = handle:headers()
  local own, status = headers:get("grpc-status"), tonumber(headers:get(":status"))
  if own then  -- what Envoy says itself: its words stand where an error's stand
    local said = unescaped(headers:get("grpc-message") or "")
    empty(headers)
    if own ~= "0" then return note_error(handle, nil, said) end
    handle:body(true):setBytes(said)
    return note(handle, 200)
  end
  if status == 200 and headers:get("content-type") == MESSAGE then return note(handle, 200) end
  local body = handle:body(true)
  local said = body:getBytes(0, math.min(body:length(), MOST_SAID_BYTES))
  empty(handle:headers(), body)  -- not the headers of before body(), which waits
  if status == 200 then
    return note(handle, 500, INTERNAL, "engine_failed: the answer is no message of the protocol")
  end
  note_error(handle, status, said)
end
