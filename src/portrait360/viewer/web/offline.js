// The start of pages that work without a network.

import { GeneratorSource } from "./generator.js";
import { run } from "./main.js";
import { LocalSource } from "./source.js";

run((canvas, payload) => (payload.generator ? GeneratorSource : LocalSource).open(canvas, payload));
