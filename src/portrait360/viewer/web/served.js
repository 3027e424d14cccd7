// Where images come from in `portrait360 view`: a server makes the people, and renders them where the browser cannot.

import { GraphicsError } from "./glsl.js";
import { openContext, SharedModel } from "./renderer.js";
import { connectSeeds } from "./seeds.js";
import { LocalSource } from "./source.js";

const DRAFT_MS = 120; // of an image while the view moves
const STILL_WAIT_MS = 180; // from the last movement to the full resolution
const SMALLEST_DRAFT = 64;
const LARGEST_SIDE = 1024;
const POLL_MS = 500;

/** The server cannot be reached, or refuses with a sentence. */
class ServerError extends Error {
  isForPeople = true;
}

/** What the server offers (server/app.py), under the address of the page. */
class Server {
  async ask(path, options = {}) {
    let response;
    try {
      response = await fetch(new URL(path, document.baseURI), options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("the server does not answer; start `portrait360 view` again");
    }
    if (!response.ok) {
      const { error, hint } = await response.json().catch(() => ({ error: `the server answers ${response.status}` }));
      throw new ServerError([error, hint].filter(Boolean).join(" "));
    }
    return response;
  }

  async json(path, options) {
    return (await this.ask(path, options)).json();
  }

  send(path, content) {
    return this.json(path, { method: "POST", body: JSON.stringify(content) });
  }

  async picture(id, view, { side, draft = false, format = "jpeg", signal }) {
    const { yaw, pitch, zoom, neck, head, background } = view;
    const query = new URLSearchParams({ yaw, pitch, zoom, neck, head, background, side, format, draft: draft ? 1 : 0 });
    return (await this.ask(`people/${id}/picture?${query}`, { signal })).blob();
  }
}

/** The list of people, which both kinds of sources show. */
class ServedPeople {
  constructor(server) {
    this.server = server;
    this.entries = [];
  }

  get names() {
    return this.entries.map(({ name }) => name);
  }

  async read() {
    this.entries = (await this.server.json("people")).people;
  }

  /** The place of a person in the list. */
  find(id) {
    return this.entries.findIndex((entry) => entry.id === id);
  }

  async mesh(index) {
    return (await this.server.ask(`people/${this.entries[index].id}/mesh`)).blob();
  }
}

/** People whose volumes the browser renders. */
class RenderedHere extends LocalSource {
  static async open(canvas, payload, list) {
    const gl = openContext(canvas);
    const source = new RenderedHere(canvas, gl, await SharedModel.read(payload.model), []);
    source.list = list;
    return source;
  }

  async select(index) {
    this.portraits[index] ??= await this.list.server.json(`people/${this.list.entries[index].id}/payload`);
    await super.select(index);
  }
}

/** People whose images the server renders: coarse ones while the view moves. */
class RenderedThere {
  constructor(canvas, list) {
    Object.assign(this, { element: canvas, list, index: 0, turn: 0, draftSide: 128, isFull: false });
    this.context = canvas.getContext("2d");
  }

  async select(index) {
    this.index = index;
    if (this.view) this.show(this.view, false);
  }

  show(view, moving) {
    this.view = view;
    this.isFull = false;
    this.turn += 1;
    this.full?.abort();
    clearTimeout(this.timer);
    const turn = this.turn;
    this.timer = setTimeout(() => this._drawFull(turn).catch(this.complain), moving ? STILL_WAIT_MS : 0);
    if (moving) this.drafts ??= this._drawDrafts().catch(this.complain).finally(() => (this.drafts = null));
  }

  get _id() {
    return this.list.entries[this.index].id;
  }

  async _drawDrafts() {
    let drawn = -1;
    while (drawn !== this.turn) {
      drawn = this.turn;
      const start = performance.now();
      await this._draw(await this.list.server.picture(this._id, this.view, { side: this.draftSide, draft: true }));
      const factor = Math.sqrt(DRAFT_MS / Math.max(performance.now() - start, 4));
      const next = this.draftSide * Math.min(Math.max(factor, 0.5), 1.5);
      this.draftSide = Math.round(Math.min(Math.max(next, SMALLEST_DRAFT), LARGEST_SIDE, this.element.width));
    }
  }

  async _drawFull(turn) {
    await this.drafts;
    if (turn !== this.turn) return;
    const { signal } = (this.full = new AbortController());
    const side = Math.min(this.element.width, LARGEST_SIDE);
    try {
      const picture = await this.list.server.picture(this._id, this.view, { side, signal });
      if (turn !== this.turn) return;
      await this._draw(picture);
      this.isFull = true;
      this.element.dispatchEvent(new Event("sharp"));
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    }
  }

  async _draw(blob) {
    const image = await createImageBitmap(blob);
    const { width } = this.element;
    this.context.drawImage(image, 0, 0, width, width);
    image.close();
    this.element.dispatchEvent(new Event("drawn"));
  }

  picture(view, side) {
    return this.list.server.picture(this._id, view, { side: Math.min(side, LARGEST_SIDE), format: "png" });
  }
}

/** The source of a served page: the browser renders if the model and the browser allow it. */
export async function openServed(canvas, payload) {
  const list = new ServedPeople(new Server());
  await list.read();
  let source = null;
  if (payload.model) {
    source = await RenderedHere.open(canvas, payload, list).catch((error) => {
      if (!(error instanceof GraphicsError)) throw error;
    });
  }
  source ??= new RenderedThere(canvas, list);
  Object.defineProperty(source, "people", { get: () => list.names });
  source.hasMesh = (index) => list.entries[index].mesh;
  source.mesh = (index) => list.mesh(index);
  source.connect = (form, status, complain, choose) => connectServer(source, { form, status, complain, choose });
  return source;
}

/** Join the page's controls that ask the server for work. */
function connectServer(source, { form, status, complain, choose }) {
  const { list } = source;
  const { server } = list;
  const say = (words) => (status.textContent = words);
  source.complain = (error) => (error instanceof ServerError ? say(`${sentence(error.message)}`) : complain(error));
  const attempt = (work) => () => work().catch(source.complain);

  /** Show a person, who may be new. */
  const show = async (id) => {
    await list.read();
    await choose(list.find(id));
  };

  // Seeds
  connectSeeds(form, (seed, truncation) => attempt(async () => {
    say(`Making seed ${seed} …`);
    await show((await server.send("people", { seed, truncation })).id);
    say(`This is seed ${seed}.`);
  })());

  // Work that takes its time
  const watch = new JobWatch(form, server);
  const { photos, fast, force, invert, files } = form.elements;
  const fromPhotos = async (chosen) => {
    if (chosen.length === 0) return say("Choose a photo first.");
    const numbers = [];
    for (const [index, file] of chosen.entries()) {
      say(`Sending photo ${index + 1} of ${chosen.length} …`);
      const path = `photos?name=${encodeURIComponent(file.name)}`;
      numbers.push((await server.json(path, { method: "POST", body: file })).photo);
    }
    say("Making a portrait …");
    const wish = { photos: numbers, fast: fast.checked, force: force.checked };
    const job = await watch.follow(await server.send("inversions", wish));
    if (job.state !== "done") return say("Stopped.");
    await show(job.person);
    say([`Saved in ${job.folder}.`, ...job.warnings.map(sentence)].join(" "));
  };
  invert.addEventListener("click", attempt(() => fromPhotos([...photos.files])));
  files.addEventListener("click", attempt(async () => {
    const { id } = list.entries[source.index];
    say("Writing images, video and mesh …");
    const job = await watch.follow(await server.json(`people/${id}/files`, { method: "POST" }));
    await show(id);
    say(job.state === "done" ? `Saved in ${job.folder}.` : "Stopped.");
  }));

  // Photos that are dropped on the portrait
  const stage = source.element;
  stage.addEventListener("dragover", (event) => event.preventDefault());
  stage.addEventListener("drop", (event) => {
    event.preventDefault();
    fromPhotos([...event.dataTransfer.files]).catch(source.complain);
  });
}

/** Shows how far the newest job is. */
class JobWatch {
  constructor(form, server) {
    this.server = server;
    this.box = document.getElementById("job");
    this.bar = document.getElementById("progress");
    this.stage = document.getElementById("stage");
    form.elements.stop.addEventListener("click", () => {
      this.stage.textContent = "Stopping …";
      if (this.job) server.json(`jobs/${this.job.id}`, { method: "DELETE" }).catch(() => {});
    });
  }

  /** The job when it is over. */
  async follow(job) {
    this.job = job;
    this.box.hidden = false;
    try {
      while (!["done", "failed", "stopped"].includes(job.state)) {
        if (job.total > 0) Object.assign(this.bar, { max: job.total, value: job.done });
        else this.bar.removeAttribute("value");
        this.stage.textContent = job.state === "waiting" ? "waiting" : job.stage;
        await new Promise((resolve) => setTimeout(resolve, POLL_MS));
        job = await this.server.json(`jobs/${job.id}`);
      }
    } finally {
      this.box.hidden = true;
    }
    if (job.state === "failed") throw new ServerError([job.error, job.hint].filter(Boolean).join(" "));
    return job;
  }
}

/** Words as a sentence of the page. */
function sentence(words) {
  const text = words.charAt(0).toUpperCase() + words.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
