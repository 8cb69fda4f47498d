-- Runs on calls of the Open Inference Protocol's gRPC service, before their message is made the body
-- of an HTTP/1 request: reads which model and version the message names, and sets the path by them.
-- On the way back it puts in what grpc_answer.lua has noted of an error.

local SERVICE = "/inference.GRPCInferenceService/"

-- Whether a method's message names a model in field 1, and perhaps a version in field 2.
local METHODS = {
  ServerLive = "", ServerReady = "", ServerMetadata = "",
  ModelInfer = "names", ModelReady = "names", ModelMetadata = "names",
}

local NOTED = "vlserve.grpc"  -- grpc_answer.lua and the access log in envoy.yaml read it
local FRAME_BYTES = 5  -- before a message: whether it is compressed, and its length
local MOST_FIELDS = 4096  -- of a message, beside those inside of its tensors
local TAG_BYTES = 20  -- two numbers of at most ten bytes
local MOST_NAME_BYTES = 256
local NAME = "^[%w._-]+$"

-- Returns the number that begins at byte `at` of `bytes`, and where it ends; nil where none does.
local function varint(bytes, at)
  local value, scale = 0, 1
  for place = at, at + 9 do
    local byte = bytes:byte(place)
    if not byte then return nil end
    value = value + (byte % 128) * scale
    if byte < 128 then return value, place + 1 end
    scale = scale * 128
  end
end

-- Returns the texts of fields 1 and 2 of a message, the last of each, as protobuf has it; nil where
-- the body is none. Values are jumped over, so a large image costs nothing.
local function names(body)
  local at, length, found = FRAME_BYTES, body:length(), {"", ""}
  for _ = 1, MOST_FIELDS do
    if at == length then return found end
    local head = body:getBytes(at, math.min(TAG_BYTES, length - at))
    local tag, after = varint(head, 1)
    if not tag then return nil end
    local field, wire = math.floor(tag / 8), tag % 8
    local size
    if wire == 0 then
      size, after = 0, select(2, varint(head, after))
    elseif wire == 1 then size = 8
    elseif wire == 2 then size, after = varint(head, after)
    elseif wire == 5 then size = 4
    end
    if not size or not after or at + after - 1 + size > length then return nil end
    at = at + after - 1
    if found[field] and wire == 2 then
      if size > MOST_NAME_BYTES then return nil end
      found[field] = size > 0 and body:getBytes(at, size) or ""
    end
    at = at + size
  end
end

local function refuse(handle, status, grpc_status, message)
  local noted = handle:streamInfo():dynamicMetadata()
  noted:set(NOTED, "status", status)
  noted:set(NOTED, "grpc_status", grpc_status)
  noted:set(NOTED, "message", message)
  handle:respond({[":status"] = "200"}, "")
end

local function path_of(method, model, version)
  if method ~= "ModelInfer" then
    return SERVICE .. method .. "/" .. model .. (version ~= "" and "/" .. version or "")
  end
  return "/v2/models/" .. model .. (version ~= "" and "/versions/" .. version or "") .. "/infer"
end

function envoy_on_request(handle)
  local method = handle:headers():get(":path"):match("^/inference%.GRPCInferenceService/(%w+)$")
  if not METHODS[method] then return end
  local body = handle:body(true)
  local length = body:length()
  if length < FRAME_BYTES then
    return refuse(handle, 400, "3", "body_unreadable: the call has no message")
  end
  local frame = body:getBytes(0, FRAME_BYTES)
  if frame:byte(1) ~= 0 then
    return refuse(handle, 501, "12", "body_unreadable: the message is compressed: send it as it is")
  end
  local announced = 0
  for place = 2, FRAME_BYTES do announced = announced * 256 + frame:byte(place) end
  if announced ~= length - FRAME_BYTES then
    return refuse(handle, 400, "3", "body_unreadable: the call has not one whole message")
  end
  local headers = handle:headers()  -- not before body(), which waits
  headers:replace("x-vlserve-call", method)
  if METHODS[method] ~= "names" then return end
  local found = names(body)
  if not found then
    return refuse(handle, 400, "3", "body_unreadable: the message is no " .. method .. "Request")
  end
  local model, version = found[1], found[2]
  if not model:match(NAME) or not (version == "" or version:match(NAME)) then
    return refuse(handle, 404, "5", "model_not_found: no model or version of this name is served")
  end
  headers:replace(":path", path_of(method, model, version))
end

function envoy_on_response(handle)
  local noted = handle:streamInfo():dynamicMetadata():get(NOTED)
  if not noted or not noted["grpc_status"] then return end
  local ending = handle:trailers() or handle:headers()
  ending:replace("grpc-status", noted["grpc_status"])
  ending:replace("grpc-message", (noted["message"]:gsub("[^ -$&-~]", function(byte)
    return string.format("%%%02X", byte:byte())
  end)))
end
