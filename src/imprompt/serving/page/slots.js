// Places for one picture: the one to start from, and the one whose outlines are followed.

import { pictureUrl } from "./api.js";
import { find, findAll, icon, make } from "./dom.js";

/** Fill the slot of `page.settings[name].image`; the functions add a picture's file, or remove the picture. */
export function createSlot(page, name, { onFile, onRemove }) {
  const slot = find(`[data-slot=${name}]`);
  const input = make("input", { type: "file", className: "unseen", accept: "image/png,image/jpeg,image/webp" });
  input.addEventListener("change", () => input.files[0] && onFile(input.files[0]).then(() => (input.value = "")));
  const choose = make("label", { className: "add" }, input, icon("plus"), make("span", { textContent: "Choose a picture" }));
  const picture = make("img", { className: "seen" });
  const title = make("span", { className: "name" });
  const remove = make("button", { type: "button", className: "icon" }, icon("close"),
    make("span", { className: "unseen", textContent: "Remove the picture" }));
  remove.addEventListener("click", () => {
    onRemove();
    input.focus();
  });
  const chosen = make("div", { className: "chosen" }, picture, title, remove);
  slot.append(choose, chosen);

  return function render() {
    const { image } = page.settings[name];
    choose.hidden = image !== null;
    chosen.hidden = image === null;
    for (const element of findAll(`[data-with=${name}]`)) element.hidden = image === null;
    if (!image) return;
    const url = pictureUrl(image.id);
    if (picture.getAttribute("src") !== url) picture.src = url;
    picture.alt = `${image.name}, ${image.width} × ${image.height} pixels`;
    title.textContent = image.name;
  };
}
