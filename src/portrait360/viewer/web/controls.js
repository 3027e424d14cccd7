// What people do to the view: drag, pinch, wheel, keys, sliders, buttons. It knows nothing of how images are made.

const LIMITS = { pitch: [-60, 60], zoom: [0.6, 5] };
const DEGREES_PER_SIDE = 180; // of a drag across the image
const KEY_DEGREES = 5;
const KEY_ZOOM = 1.1;

/** From the front, at rest. */
export function startView() {
  return { yaw: 0, pitch: 0, zoom: 1, neck: [0, 0, 0], head: [0, 0, 0], background: "studio" };
}

const clamp = (value, [low, high]) => Math.min(Math.max(value, low), high);

/** The view, and what changes it. `onChange(view, moving)` is called at every change. */
export class Controls {
  /**
   * @param {HTMLElement} stage where people drag, and what keys are pressed on.
   * @param {HTMLFormElement} form with inputs named as in page.html.
   */
  constructor(stage, form, onChange) {
    Object.assign(this, { stage, form, onChange });
    this.view = startView();
    this.pointers = new Map();
    this._listenToPointers();
    this._listenToKeys();
    this._listenToForm();
    this._showView();
  }

  /** Change parts of the view. */
  set(changes, moving = false) {
    this.view = { ...this.view, ...changes };
    this.view.yaw = ((((this.view.yaw + 180) % 360) + 360) % 360) - 180;
    this.view.pitch = clamp(this.view.pitch, LIMITS.pitch);
    this.view.zoom = clamp(this.view.zoom, LIMITS.zoom);
    this._showView();
    this.onChange(this.view, moving);
  }

  reset() {
    const { background } = this.view;
    this.set({ ...startView(), background });
  }

  // ---- pointers ----

  _listenToPointers() {
    const { stage, pointers } = this;
    stage.addEventListener("pointerdown", (event) => {
      if (event.button > 0) return;
      stage.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    stage.addEventListener("pointermove", (event) => {
      if (pointers.has(event.pointerId)) this._move(event);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      stage.addEventListener(name, (event) => {
        if (pointers.delete(event.pointerId) && pointers.size === 0) this.set({});
      });
    }
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.set({ zoom: this.view.zoom * Math.exp(-clamp(event.deltaY, [-200, 200]) / 500) }, true);
    }, { passive: false });
  }

  /** One pointer turns, two zoom. */
  _move(event) {
    const before = [...this.pointers.values()];
    const [x, y] = this.pointers.get(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (before.length === 1) {
      const perPixel = DEGREES_PER_SIDE / this.stage.clientWidth / Math.max(this.view.zoom, 1);
      const { yaw, pitch } = this.view;
      this.set({ yaw: yaw - (event.clientX - x) * perPixel, pitch: pitch + (event.clientY - y) * perPixel }, true);
    } else if (before.length === 2) {
      const apart = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]);
      const after = apart([...this.pointers.values()]);
      if (apart(before) > 0) this.set({ zoom: (this.view.zoom * after) / apart(before) }, true);
    }
  }

  // ---- keys ----

  _listenToKeys() {
    const turn = (yaw, pitch) => () => this.set({ yaw: this.view.yaw + yaw, pitch: this.view.pitch + pitch }, true);
    const zoom = (factor) => () => this.set({ zoom: this.view.zoom * factor }, true);
    const keys = {
      ArrowLeft: turn(-KEY_DEGREES, 0), ArrowRight: turn(KEY_DEGREES, 0),
      ArrowUp: turn(0, KEY_DEGREES), ArrowDown: turn(0, -KEY_DEGREES),
      "+": zoom(KEY_ZOOM), "=": zoom(KEY_ZOOM), "-": zoom(1 / KEY_ZOOM), Home: () => this.reset(), 0: () => this.reset(),
    };
    this.stage.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
    });
  }

  // ---- sliders ----

  _listenToForm() {
    const change = (moving) => (event) => {
      const { name, value } = event.target;
      const joint = /^(neck|head)([XYZ])$/.exec(name);
      if (joint) {
        const angles = [...this.view[joint[1]]];
        angles["XYZ".indexOf(joint[2])] = Number(value);
        this.set({ [joint[1]]: angles }, moving);
      } else if (name === "yaw" || name === "pitch") {
        this.set({ [name]: Number(value) }, moving);
      } else if (name === "zoom") {
        this.set({ zoom: Number(value) / 100 }, moving);
      } else if (name === "background") {
        this.set({ background: value });
      }
    };
    this.form.addEventListener("input", change(true));
    this.form.addEventListener("change", change(false));
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.elements.reset.addEventListener("click", () => this.reset());
  }

  /** Let the sliders and their numbers show the view. */
  _showView() {
    const { yaw, pitch, zoom, neck, head, background } = this.view;
    const values = { yaw, pitch, zoom: 100 * zoom, background };
    ["X", "Y", "Z"].forEach((axis, i) => Object.assign(values, { [`neck${axis}`]: neck[i], [`head${axis}`]: head[i] }));
    for (const [name, value] of Object.entries(values)) {
      const input = this.form.elements[name];
      if (typeof value === "number") {
        const unit = name === "zoom" ? "%" : "°";
        input.value = Math.round(value);
        input.setAttribute("aria-valuetext", `${Math.round(value)}${unit}`);
        this.form.querySelector(`output[for="${input.id}"]`).textContent = `${Math.round(value)}${unit}`;
      } else {
        input.value = value;
      }
    }
  }
}
