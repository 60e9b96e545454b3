// SPDX-License-Identifier: Apache-2.0
// A form whose answers are saved as a JSON file; nothing is sent.
"use strict";
for (const form of document.querySelectorAll("form.rating")) {
  const { name, metadata } = JSON.parse(form.dataset.about);
  form.querySelector("button").disabled = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const given = new FormData(form);
    const now = `${new Date().toISOString().slice(0, 19)}Z`;
    const rating = {
      ...metadata,
      Rating: given.get("Rating"),
      Artefacts: given.getAll("Artefacts"),
      Comment: given.get("Comment").trim(),
      Rater: given.get("Rater").trim(),
      RatedOn: now,
    };
    const text = `${JSON.stringify(rating, null, 2)}\n`;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `${name}_rating-${now.replace(/[-:]/g, "")}.json`;
    link.click();
    form.querySelector("output").textContent = `Saved as ${link.download}.`;
  });
}
