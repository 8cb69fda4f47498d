-- Runs on whatever a Triton instance answers.
--
-- An answer of our model (src/vlserve_worker/triton_model.py) is Triton's own JSON, as long as a
-- header says, then `STATUS SERVER-TIMING`, a line's end, and the JSON body for the client.
-- Anything else Triton says itself.

-- What to look for in Triton's words, or its status -> code, message. Another try can help against
-- each of them.
local OVERLOADED = {"overloaded", "the version's queue is full, or no worker is up"}
local UNAVAILABLE = {"version_unavailable", "the version is not loaded at the moment"}
local BROKEN = {"engine_failed", "the engine lost this request"}
local SAID = {
  ["503"] = OVERLOADED,
  ["404"] = UNAVAILABLE,
  ["403"] = UNAVAILABLE,  -- the instance was started anew: its new token is on the way
}

local FIRST_LINE_BYTES = 512

local function refuse(headers, body, said)
  local gone = said:find("unknown model", 1, true) and UNAVAILABLE
  local code, message = unpack(gone or SAID[headers:get(":status")] or BROKEN)
  headers:replace(":status", "503")
  headers:replace("content-type", "application/json")
  headers:replace("retry-after", "1")
  headers:replace("x-vlserve-retry", "1")
  body:setBytes('{"error": {"code": "' .. code .. '", "message": "' .. message .. '"}}')
end

function envoy_on_response(handle)
  local body = handle:body(true)
  local headers = handle:headers()  -- not before body(), which waits
  local at, length = tonumber(headers:get("inference-header-content-length") or ""), body:length()
  if not at or at >= length then
    return refuse(headers, body, body:getBytes(0, math.min(length, FIRST_LINE_BYTES)))
  end
  local first = body:getBytes(at, math.min(length - at, FIRST_LINE_BYTES))
  local own, timing, rest = first:match("^(%d%d%d) ([^\n]*)\n()")
  if not own then return refuse(headers, body, "") end
  headers:replace(":status", own)
  headers:replace("content-type", "application/json")
  headers:remove("inference-header-content-length")
  if timing ~= "" then headers:replace("server-timing", timing) end
  local start = at + rest - 1
  body:setBytes(body:getBytes(start, length - start))
end
