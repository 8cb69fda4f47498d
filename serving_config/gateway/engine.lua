-- Runs on what an engine instance says itself, which our handler has not marked with
-- x-vlserve-version.

-- Type of TorchServe's error -> code, message. Another try can help against each of them: a body
-- that cannot be read is the handler's to refuse.
local OVERLOADED = {"overloaded", "the version's queue is full, or no worker is up"}
local UNAVAILABLE = {"version_unavailable", "the version is not loaded at the moment"}
local BROKEN = {"engine_failed", "the engine lost this request"}
local SAID = {
  ServiceUnavailableException = OVERLOADED,
  ModelNotFoundException = UNAVAILABLE,
  ModelVersionNotFoundException = UNAVAILABLE,
  InvalidKeyException = UNAVAILABLE,  -- the instance was started anew: its new token is on the way
}

-- Where a Triton runs beside, the gateway tries more often than is meant for TorchServe.
-- number: of the try that was answered; most: of a try after which any reply is sent again.
local NOTED = "vlserve.torchserve"
local FIRST_TRY = {number = 1, most = 1}

function envoy_on_request(handle)
  local headers = handle:headers()
  local number = tonumber(headers:get("x-envoy-attempt-count") or "")
  local most = tonumber(headers:get("x-vlserve-retries") or "")
  if number and most and number > 1 then
    local noted = handle:streamInfo():dynamicMetadata()
    noted:set(NOTED, "number", number)
    noted:set(NOTED, "most", most)
  end
end

function envoy_on_response(handle)
  if tonumber(handle:headers():get(":status")) < 400 then return end
  local body = handle:body(true)
  local kind = body:getBytes(0, body:length()):match('"type":%s*"(%w+)"')
  local code, message = unpack(SAID[kind] or BROKEN)
  local headers = handle:headers()  -- not before body(), which waits
  headers:replace(":status", "503")
  headers:replace("content-type", "application/json")
  headers:replace("retry-after", "1")
  local tries = handle:streamInfo():dynamicMetadata():get(NOTED) or FIRST_TRY
  if tries.number <= tries.most then headers:replace("x-vlserve-retry", "1") end
  body:setBytes('{"error": {"code": "' .. code .. '", "message": "' .. message .. '"}}')
end
