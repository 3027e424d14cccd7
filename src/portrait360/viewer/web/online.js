// The start of the page that `portrait360 view` serves.

import { run } from "./main.js";
import { openServed } from "./served.js";

run(openServed);
