// The page Try it: sends the form to the versions that are chosen, draws the picture that was sent
// under what they found in it, and writes the same request as a client sends it.
"use strict";

const trial = document.getElementById("trial");

function files() {
  return [...trial.querySelectorAll("input[type=file]")];
}

// Field name -> a File or a text, as the form is filled in; a video goes in the place of an image.
function filled() {
  const values = [];
  for (const input of trial.querySelectorAll("[data-field]")) {
    const name = input.dataset.field;
    if (input.type === "file") {
      for (const file of input.files) {
        values.push([name === "image" && file.type.startsWith("video/") ? "video" : name, file]);
      }
    } else if (input.type === "checkbox") {
      if (input.checked) {
        values.push([name, "true"]);
      }
    } else if (input.value !== "") {
      values.push([name, input.value]);
    }
  }
  return values;
}

function versions() {
  const chosen = [trial.elements.version.value, trial.elements.beside.value];
  return [...new Set(chosen.filter((version) => version))];
}

async function send() {
  const said = document.getElementById("trial-said");
  const values = filled();
  const body = new FormData();
  values.forEach(([name, value]) => body.append(name, value));
  said.textContent = trial.dataset.sending;
  showAsClient(values);
  try {
    const query = versions().map((version) => "version=" + version).join("&");
    const answer = await fetch(location.pathname + "?" + query, {
      method: "POST",
      headers: { [TOKEN_HEADER]: token() },
      body,
    });
    const text = await answer.text();
    said.textContent = answer.ok ? "" : JSON.parse(text).error.message;
    if (answer.ok) {
      const place = document.getElementById("answers");
      place.innerHTML = text; // rendered and escaped by the control service
      showPicture(place, values);
    }
  } catch {
    said.textContent = trial.dataset.failed;
  }
}

let picture = "";

function showPicture(place, values) {
  URL.revokeObjectURL(picture);
  const sent = values.find(([name, value]) => name === "image" && value instanceof File);
  picture = sent ? URL.createObjectURL(sent[1]) : "";
  for (const image of place.querySelectorAll("img[data-sent]")) {
    image.src = picture;
  }
}

function showAsClient(values) {
  const [version] = versions();
  const url = trial.dataset.gateway + "/predictions/" + trial.dataset.model + "/" + version;
  document.getElementById("as-curl").textContent = asCurl(url, values);
  document.getElementById("as-python").textContent = asPython(url, values);
  document.getElementById("as-client").hidden = false;
}

function shellWord(text) {
  return "'" + text.replaceAll("'", "'\\''") + "'";
}

function asCurl(url, values) {
  const words = ["curl " + shellWord(url)];
  if (trial.dataset.key) {
    words.push("-H " + '"' + trial.dataset.key + ': $GATEWAY_KEY"');
  }
  for (const [name, value] of values) {
    if (value instanceof File) {
      const quoted = value.name.replace(/[\\"]/g, "\\$&");
      words.push("-F " + shellWord(name + '=@"' + quoted + '"'));
    } else {
      words.push("--form-string " + shellWord(name + "=" + value));
    }
  }
  return words.join(" \\\n  ");
}

// JSON's strings are Python's.
function asPython(url, values) {
  const pair = ([name, value]) => JSON.stringify(name) + ": " + value;
  const data = values.filter(([, value]) => !(value instanceof File));
  const sent = values.filter(([, value]) => value instanceof File);
  const lines = ["import os", "", "import httpx", "", "answer = httpx.post(", "    " + JSON.stringify(url) + ","];
  if (!trial.dataset.key) {
    lines.splice(0, 2);
  } else {
    lines.push("    headers={" + JSON.stringify(trial.dataset.key) + ': os.environ["GATEWAY_KEY"]},');
  }
  if (data.length) {
    lines.push("    data={" + data.map(([name, text]) => pair([name, JSON.stringify(text)])).join(", ") + "},");
  }
  if (sent.length) {
    const open = (file) => "open(" + JSON.stringify(file.name) + ', "rb")';
    lines.push("    files={" + sent.map(([name, file]) => pair([name, open(file)])).join(", ") + "},");
  }
  lines.push(")", "print(answer.json())");
  return lines.join("\n");
}

if (trial) {
  trial.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  trial.addEventListener("dragover", (event) => event.preventDefault());
  trial.addEventListener("drop", (event) => {
    event.preventDefault();
    const [target] = files();
    if (target && event.dataTransfer.files.length) {
      target.files = event.dataTransfer.files;
    }
  });
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () =>
      navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent),
    );
  }
}
