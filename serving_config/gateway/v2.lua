-- Runs on what clients of the Open Inference Protocol (V2) get: an error in the gateway's words becomes
-- {"error": "CODE: MESSAGE"}, as the worker writes its own.

local NOTED = "vlserve.v2"

function envoy_on_request(handle)
  handle:streamInfo():dynamicMetadata():set(NOTED, "asked", true)
end

function envoy_on_response(handle)
  -- Of what is not even a request no path is known, and this script has not been left out.
  if not handle:streamInfo():dynamicMetadata():get(NOTED) then return end
  if tonumber(handle:headers():get(":status")) < 400 then return end
  local body = handle:body(true)
  local text = body:getBytes(0, body:length())
  local code, message = text:match('^{"error":%s*{"code":%s*"([%w_]+)",%s*"message":%s*"(.*)"}}%s*$')
  if not code then return end
  handle:headers():replace("content-type", "application/json")
  body:setBytes('{"error": "' .. code .. ": " .. message .. '"}')
end
