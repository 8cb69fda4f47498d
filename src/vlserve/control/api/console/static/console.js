// What the pages do beyond reading: act with the session's token, upload, and follow live figures.
"use strict";

const TOKEN_HEADER = "X-Console-Token";

function token() {
  return localStorage.getItem("vlserve-token") || "";
}

for (const form of document.querySelectorAll('form[method="post"]')) {
  form.addEventListener("submit", () => {
    const field = document.createElement("input");
    field.type = "hidden";
    field.name = "token";
    field.value = token();
    form.append(field);
  });
}

const content = document.querySelector("main[data-live]");
if (content) {
  const figures = new EventSource(content.dataset.live);
  figures.addEventListener("part", (event) => {
    const part = JSON.parse(event.data);
    const place = document.getElementById(part.id);
    if (!place || place.contains(document.activeElement)) {
      return;
    }
    const before = state(place);
    place.innerHTML = part.html;
    if (state(place) !== before) {
      location.reload(); // other actions are possible now
    }
  });
}

function state(place) {
  const told = place.querySelector("[data-state]");
  return told ? told.dataset.state : "";
}

const drop = document.getElementById("drop");
if (drop) {
  const archive = document.getElementById("archive");
  archive.addEventListener("change", () => upload(Array.from(archive.files)));
  drop.addEventListener("dragover", (event) => event.preventDefault());
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    upload(Array.from(event.dataTransfer.files));
  });
}

// The archive, its signature and its provenance among the files; null if they are anything else.
function signedArchive(files) {
  // A browser that downloads a file twice calls the second "… (1).json".
  const isProvenance = (file) => /\.provenance\.sigstore.*\.json$/.test(file.name);
  const isSignature = (file) => /\.sigstore.*\.json$/.test(file.name) && !isProvenance(file);
  const isArchive = (file) => !isSignature(file) && !isProvenance(file);
  const parts = [isArchive, isSignature, isProvenance].map((is) => files.filter(is));
  if (parts[0].length !== 1 || parts[1].length > 1 || parts[2].length > 1) {
    return null;
  }
  return { archive: parts[0][0], signature: parts[1], provenance: parts[2] };
}

function upload(files) {
  if (!files.length) {
    return;
  }
  const sent = document.getElementById("sent");
  const said = document.getElementById("said");
  const signed = signedArchive(files);
  if (!signed) {
    said.textContent = drop.dataset.odd;
    return;
  }
  const { archive, signature, provenance } = signed;
  const query = new URLSearchParams({
    name: archive.name,
    signature_bytes: new Blob(signature).size,
    provenance_bytes: new Blob(provenance).size,
  });
  const request = new XMLHttpRequest();
  request.open("POST", "/console/versions?" + query);
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.setRequestHeader(TOKEN_HEADER, token());
  request.upload.addEventListener("progress", (event) => {
    sent.value = event.loaded / event.total;
    said.textContent = event.loaded === event.total ? drop.dataset.loading : "";
  });
  request.addEventListener("load", () => {
    const answer = JSON.parse(request.responseText);
    if (request.status === 200) {
      location.assign(answer.page);
    } else {
      said.textContent = answer.error.message;
    }
  });
  request.addEventListener("error", () => {
    said.textContent = drop.dataset.failed;
  });
  request.send(new Blob([...signature, ...provenance, archive]));
}
