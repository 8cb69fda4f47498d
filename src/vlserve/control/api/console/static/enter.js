// Keeps the token of the session for this origin, then shows the first page.
"use strict";
localStorage.setItem("vlserve-token", document.querySelector("script[data-token]").dataset.token);
location.replace("/console/");
