// The controls of a seed: its number, how much people vary, and a random one.

const LARGEST_SEED = 2 ** 32 - 1;

/** Call `make(seed, truncation)` whenever one of the controls changes. */
export function connectSeeds(form, make) {
  const { seed, truncation, random } = form.elements;
  const changed = () => {
    seed.value = Math.min(Math.max(Math.round(Number(seed.value) || 0), 0), LARGEST_SEED);
    make(Number(seed.value), Number(truncation.value) / 100);
  };
  seed.addEventListener("change", changed);
  truncation.addEventListener("input", () => {
    form.querySelector('output[for="truncation"]').textContent = `${truncation.value}%`;
  });
  truncation.addEventListener("change", changed);
  random.addEventListener("click", () => {
    seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
    changed();
  });
}
