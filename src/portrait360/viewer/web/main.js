// The page: reads the payload, and joins controls to where images come from.

import { PayloadError } from "./blobs.js";
import { Controls } from "./controls.js";
import { latentOf } from "./latent.js";
import { GraphicsError } from "./glsl.js";

const FORMAT = "portrait360-page";
const VERSION = 1;
const LARGEST_CANVAS = 2048;
const LEAST_SAVED_SIDE = 512;

const find = (id) => document.getElementById(id);

function readPayload() {
  let payload;
  try {
    payload = JSON.parse(find("payload").textContent);
  } catch {
    throw new PayloadError("its data are damaged");
  }
  if (payload?.format !== FORMAT) throw new PayloadError("its data are not those of a portrait");
  if (payload.version !== VERSION) throw new PayloadError(`its data are of version ${payload.version}, not ${VERSION}`);
  return payload;
}

/** Say why there is no portrait; the images of the page stay. */
function complain(error) {
  const known = error.isForPeople === true;
  const reason = known ? error.message : "of an error in the page";
  find("problem").textContent = `The portrait cannot be turned, because ${reason}.`;
  find("problem").hidden = false;
  find("viewer").hidden = true;
  find("fallback").hidden = false;
  if (!known) console.error(error);
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A name for a file. */
const fileName = (name, ending) => `${name.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-")}.${ending}`;

/** The canvas has the pixels of the screen, up to a limit. */
function fitCanvas(canvas) {
  const side = Math.round(Math.min(canvas.clientWidth * devicePixelRatio, LARGEST_CANVAS));
  if (side === canvas.width || side < 1) return false;
  canvas.width = canvas.height = side;
  return true;
}

/** The page's first image lies over the canvas until something is drawn there. */
function showPoster(canvas) {
  const first = document.querySelector("#fallback img");
  if (!first) return;
  const poster = new Image();
  poster.alt = "";
  poster.src = first.src;
  find("frame").append(poster);
  canvas.addEventListener("drawn", () => poster.remove(), { once: true });
}

function connectButtons(form, source, controls) {
  const name = () => source.people[source.index];
  form.elements.save.addEventListener("click", async () => {
    const side = Math.max(source.element.width, LEAST_SAVED_SIDE);
    find("status").textContent = "Rendering the image …";
    save(await source.picture(controls.view, side), fileName(name(), "png"));
    find("status").textContent = `Saved with ${side} × ${side} pixels.`;
  });
  form.elements.mesh.addEventListener("click", async () => {
    save(await source.mesh(source.index), fileName(name(), "glb"));
  });
}

/** Let people choose among those that there are now. */
function listPeople(form, source) {
  form.elements.person.replaceChildren(...source.people.map((name, index) => new Option(name, index)));
  find("chooser").hidden = source.people.length < 2;
}

async function start(openSource) {
  const payload = readPayload();
  const canvas = find("portrait");
  const form = find("controls");
  const source = await openSource(canvas, payload);
  find("fallback").hidden = true;
  find("viewer").hidden = false;
  fitCanvas(canvas);
  showPoster(canvas);

  const controls = new Controls(canvas, form, (view, moving) => source.show(view, moving));
  const choose = async (index) => {
    listPeople(form, source);
    source.index = index;
    form.elements.person.value = index;
    canvas.setAttribute("aria-label", `${source.people[index]}, a portrait in 3D`);
    form.elements.mesh.hidden = !source.hasMesh(index);
    await source.select(index);
  };
  connectButtons(form, source, controls);
  const { person } = form.elements;
  person.addEventListener("change", () => choose(Number(person.value)).catch(complain));
  source.connect?.(form, find("status"), complain, choose);
  canvas.addEventListener("webglcontextlost", () => complain(new GraphicsError("the graphics card was reset; reload")));
  new ResizeObserver(() => fitCanvas(canvas) && source.show(controls.view, false)).observe(canvas);
  source.show(controls.view, false);
  await choose(0);
  find("status").textContent = "";

  // For scripts that embed or test the page
  globalThis.portrait360 = { controls, source, choose, latentOf };
  document.documentElement.dataset.ready = "true";
}

/**
 * Start the page.
 *
 * @param openSource (canvas, payload) to a promise of where images come from (source.js).
 */
export function run(openSource) {
  start(openSource).catch(complain);
}
