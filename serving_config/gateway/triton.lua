-- Runs on whatever a Triton instance answers.
--
-- An answer of our model (src/vlserve_worker/triton_model.py) is Triton's own JSON, as long as a
-- header says, then `STATUS SERVER-TIMING`, a line's end, and the JSON body for the client. Of another
-- body the first word is `STATUS;type=CONTENT-TYPE`, with `;json=BYTES` where binary data follow JSON.
-- Of an adopted archive, whose handler sets its headers, the first word is `STATUS;headers=BYTES`, and
-- so many bytes of `name:value` lines come before the body, which may be anything.
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

-- A dead worker fails what it gets until the control service has taken it out, at once where others
-- live, else until another one has started. So a request that met one is sent again more often, and
-- each further try waits longer: number of the try that met it -> seconds.
local DEAD_WORKER = {"is not healthy", "health mutex", "exited unexpectedly"}
local WAITS_S = {0, 1, 2}
local LONGEST_WAIT_S = 4

local FIRST_LINE_BYTES = 512

local function met_dead_worker(said)
  for _, words in ipairs(DEAD_WORKER) do
    if said:find(words, 1, true) then return true end
  end
end

local function refuse(headers, body, said, tries)
  local gone = said:find("unknown model", 1, true) and UNAVAILABLE
  local code, message = unpack(gone or SAID[headers:get(":status")] or BROKEN)
  headers:replace(":status", "503")
  headers:replace("content-type", "application/json")
  headers:replace("retry-after", "1")
  if met_dead_worker(said) then
    headers:replace("x-vlserve-retry", "1")
    headers:replace("x-vlserve-retry-after", tostring(WAITS_S[tries.number] or LONGEST_WAIT_S))
  elseif tries.number <= tries.most then
    headers:replace("x-vlserve-retry", "1")
  end
  body:setBytes('{"error": {"code": "' .. code .. '", "message": "' .. message .. '"}}')
end

local NOTED = "vlserve.triton"
-- number: of the try that was answered; most: of a try after which any reply is sent again.
local FIRST_TRY = {number = 1, most = 1}

local function tries_of(handle)
  return handle:streamInfo():dynamicMetadata():get(NOTED) or FIRST_TRY
end

function envoy_on_request(handle)
  local headers = handle:headers()
  headers:replace(":method", "POST")  -- of a client that asks with GET or PUT
  local number = tonumber(headers:get("x-envoy-attempt-count") or "")
  local most = tonumber(headers:get("x-vlserve-retries") or "")
  if number and most and number > 1 then
    local noted = handle:streamInfo():dynamicMetadata()
    noted:set(NOTED, "number", number)
    noted:set(NOTED, "most", most)
  end
end

-- Headers that are the gateway's to set.
local NOT_SET = {["content-length"] = true, ["transfer-encoding"] = true, connection = true}

local function set_all(headers, lines)
  for name, value in lines:gmatch("([^:\n]+):([^\n]*)\n") do
    name = name:lower()
    if not NOT_SET[name] then headers:replace(name, value) end
  end
end

function envoy_on_response(handle)
  local body = handle:body(true)
  local headers = handle:headers()  -- not before body(), which waits
  local at, length = tonumber(headers:get("inference-header-content-length") or ""), body:length()
  if not at or at >= length then
    local said = body:getBytes(0, math.min(length, FIRST_LINE_BYTES))
    return refuse(headers, body, said, tries_of(handle))
  end
  local first = body:getBytes(at, math.min(length - at, FIRST_LINE_BYTES))
  local own, about, timing, rest = first:match("^(%d%d%d)(%S*) ([^\n]*)\n()")
  if not own then return refuse(headers, body, "", tries_of(handle)) end
  local start = at + rest - 1
  headers:replace(":status", own)
  headers:replace("content-type", about:match(";type=([^;]+)") or "application/json")
  headers:replace("cache-control", "no-store")  -- of GET too; TorchServe says it by itself
  local json_bytes = about:match(";json=(%d+)")
  if json_bytes then
    headers:replace("inference-header-content-length", json_bytes)
  else
    headers:remove("inference-header-content-length")
  end
  local size = tonumber(about:match(";headers=(%d+)") or "")
  if size then
    headers:remove("content-type")
    set_all(headers, size > 0 and body:getBytes(start, size) or "")
    start = start + size
  end
  if timing ~= "" then
    headers:replace("server-timing", timing .. ", " .. headers:get("server-timing"))
  end
  body:setBytes(start < length and body:getBytes(start, length - start) or "")
end
