-- Runs on every try that goes to an engine instance, and on what that instance says.

-- All that an engine needs of a client's headers; the instance's token is added after this.
local PASSED = {
  [":method"] = true, [":path"] = true, [":authority"] = true, [":scheme"] = true,
  ["content-type"] = true, ["content-length"] = true, ["transfer-encoding"] = true,
  ["x-request-id"] = true, ["x-vlserve-content-type"] = true,
}

-- TorchServe's own parser takes ten times as long for a form as the handler's: it is told of plain
-- bytes. A second try finds this done.
local function hand_over_whole(headers)
  local kind = headers:get("content-type")
  if kind and kind:lower():find("^multipart/form%-data") then
    headers:replace("x-vlserve-content-type", kind)
    headers:replace("content-type", "application/octet-stream")
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local refused = {}
  for name, _ in pairs(headers) do
    if not PASSED[name] then refused[#refused + 1] = name end
  end
  for _, name in ipairs(refused) do headers:remove(name) end
  hand_over_whole(headers)
end

-- Our handler marks what it says with x-vlserve-version. All else is TorchServe's own word:
-- type of its error -> status, code, message, whether another try can help.
local BODY = {"400", "body_unreadable",
  "the body is neither a readable multipart form nor a JSON object", false}
local OVERLOADED = {"503", "overloaded", "the version's queue is full, or no worker is up", true}
local UNAVAILABLE = {"503", "version_unavailable", "the version is not loaded at the moment", true}
local BROKEN = {"503", "engine_failed", "the engine lost this request", true}
local SAID = {
  ServiceUnavailableException = OVERLOADED,
  ModelNotFoundException = UNAVAILABLE,
  ModelVersionNotFoundException = UNAVAILABLE,
  InvalidKeyException = UNAVAILABLE,  -- the instance was started anew: its new token is on the way
  InternalServerException = BROKEN,
  WorkerInitializationException = BROKEN,
  RejectedExecutionException = BROKEN,
  ClosedChannelException = BROKEN,
  IOException = BROKEN,
}

-- Reading a malformed form, TorchServe answers with whichever exception its parser met, mostly as
-- 500: ErrorDataDecoderException, StringIndexOutOfBoundsException, UnsupportedCharsetException, ...
local function meaning(kind)
  return SAID[kind] or (kind and kind:find("Exception$") and BODY) or BROKEN
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if headers:get("x-vlserve-version") or tonumber(headers:get(":status")) < 400 then return end
  local body = handle:body(true)
  local kind = body:getBytes(0, body:length()):match('"type":%s*"(%w+)"')
  local status, code, message, again = unpack(meaning(kind))
  headers = handle:headers()  -- the earlier one is void since body() waited
  headers:replace(":status", status)
  headers:replace("content-type", "application/json")
  if again then
    headers:replace("retry-after", "1")
    headers:replace("x-vlserve-retry", "1")
  end
  body:setBytes('{"error": {"code": "' .. code .. '", "message": "' .. message .. '"}}')
end
